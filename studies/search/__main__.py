"""`python -m studies.search`, from the root of a checkout."""

import sys

from studies.search.measure import main

sys.exit(main())
