"""`python -m llmsql.demo` runs the demo."""

import sys

from llmsql.demo.run import main

sys.exit(main())
