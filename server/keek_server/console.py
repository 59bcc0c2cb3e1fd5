"""What the commands say on standard error."""

import logging
import sys


def log_to_stderr() -> None:
    """Keek's own messages from INFO on, those of libraries from WARNING on."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for package in ("keek_server", "keek_training"):
        logging.getLogger(package).setLevel(logging.INFO)
