"""`python -m lightpeft` is `lightpeft`."""

from lightpeft.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
