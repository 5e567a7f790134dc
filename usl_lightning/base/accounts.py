"""Whether Weights & Biases would know who one is; asked without the network, and without importing it."""

import netrc
import os
from urllib.parse import urlparse

OFFLINE = ("offline", "dryrun")
"""What `WANDB_MODE` is where nothing is sent."""

HOW = "not logged in; run `wandb login` or set WANDB_API_KEY"


def wandb_server() -> str:
    """The address that runs are sent to."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def sends_nothing() -> bool:
    """Whether the environment says that runs are kept here."""
    return os.environ.get("WANDB_MODE") in OFFLINE


def logged_in() -> bool:
    """Whether wandb would find a key, or is told to need none."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "disabled":
        return True
    host = urlparse(wandb_server()).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
