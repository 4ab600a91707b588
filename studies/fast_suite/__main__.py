"""`python -m studies.fast_suite`, from the root of a checkout."""

import sys

from studies.fast_suite.measure import main

sys.exit(main())
