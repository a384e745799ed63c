"""`python -m llmsql` is the `llmsql` command."""

import sys

from llmsql.cli import main

sys.exit(main())
