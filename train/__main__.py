"""`python -m train COMMAND` is `rootstock COMMAND`."""

from train.cli import main

if __name__ == "__main__":
    main()
