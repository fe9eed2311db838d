"""`python -m skcompressae` is the command line."""

import sys

from skcompressae._cli._main import main

sys.exit(main())
