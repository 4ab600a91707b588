"""`python -m studies.does_it_help`, from the root of a checkout."""

import sys

from studies.does_it_help.command import main

sys.exit(main())
