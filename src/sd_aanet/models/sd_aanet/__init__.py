"""SD-AANet (arXiv 2108.06600): the network, its modules and losses, and what ties it to the published one."""

from sd_aanet.models.sd_aanet.network import SDAANet, SDAANetMulti

__all__ = ["SDAANet", "SDAANetMulti"]
