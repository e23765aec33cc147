"""`python -m train COMMAND` is the same as `rootstock COMMAND`."""

import sys

from train.distributed.sigterm import exit_on_sigterm


def main() -> None:
    """Runs `rootstock` and exits; SIGTERM is handled from here on, before the slow imports."""
    exit_on_sigterm(sys.argv[1:])
    from train import cli

    cli.main()


if __name__ == "__main__":
    main()
