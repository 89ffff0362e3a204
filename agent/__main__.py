"""`python -m agent` is the `mewm` command."""

from agent.cli.main import main

if __name__ == "__main__":
    main()
