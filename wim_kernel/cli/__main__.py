"""`python -m wim_kernel.cli`."""

from wim_kernel.cli.main import main

if __name__ == "__main__":
    main()
