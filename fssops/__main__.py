"""``python -m fssops <verb>``."""

from fssops.command_line import main

if __name__ == "__main__":
    main()
