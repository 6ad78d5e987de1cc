"""`python -m headlift` is the same as the `headlift` command."""

from headlift.cli import main

if __name__ == "__main__":
    main()
