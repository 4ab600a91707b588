"""`python -m studies.gpu`, from the root of a checkout."""

import sys

from studies.gpu.command import main

sys.exit(main())
