"""Sweeps, the jobs of `-m`: each in a folder that the same sweep finds again, none stopped by another's failure.

The parent plans (plan.py) and lists (run.py). A launcher may run the jobs in other processes and on other machines:
what they did shows in files alone, in their folders (folder.py) and, while the command runs, in a ledger.
"""

import warnings

from omegaconf import OmegaConf

from sd_aanet.files import new_folder
from sd_aanet.sweep.devices import jobs_at_once
from sd_aanet.sweep.folder import job_name

# For conf/: whoever composes a job imports this first, a launcher's process too.
OmegaConf.register_new_resolver("job_name", job_name, replace=True)
OmegaConf.register_new_resolver("jobs_at_once", jobs_at_once, replace=True)
OmegaConf.register_new_resolver("new_folder", new_folder, replace=True, use_cache=True)  # one a run, as its time
# conf/hydra/launcher/joblib.yaml completes the plugin's configuration by having its name: meant, so no warning.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/joblib' is validated against ConfigStore schema")
