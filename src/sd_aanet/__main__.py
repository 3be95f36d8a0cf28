"""`python -m sd_aanet` is the command `sd-aanet`."""

from sd_aanet.cli import main

main()
