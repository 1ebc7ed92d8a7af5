"""`python -m worker`: the supervisor."""

import sys

if __name__ == "__main__":
    # Runners find this module as their parent's main: there is nothing in it for them.
    from worker.supervisor import main

    sys.exit(main())
