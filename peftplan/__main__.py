"""`python -m peftplan`: the same as the command `peftplan`."""

from peftplan.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
