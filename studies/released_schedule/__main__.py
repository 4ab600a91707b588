"""`python -m studies.released_schedule`, from the root of a checkout."""

import sys

from studies.released_schedule.steps import main

sys.exit(main(sys.argv[1:]))
