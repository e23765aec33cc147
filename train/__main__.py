"""`python -m train COMMAND` is the same as `rootstock COMMAND`."""

import signal
import sys

from configs.errors import end
from train.distributed.sigterm import exit_on_sigterm


def main() -> None:
    """Runs `rootstock` and exits; SIGTERM and Ctrl-C are handled from here on, before the slow imports."""
    exit_on_sigterm(sys.argv[1:])
    # Until the command runs, Ctrl-C ends the process at once: a KeyboardInterrupt inside an import can be swallowed. A
    # shell that starts the process in the background has it ignore the signal.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: end("interrupted", 130))
    from train import cli

    cli.main()


if __name__ == "__main__":
    main()
