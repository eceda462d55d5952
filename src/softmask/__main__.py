"""python -m softmask: for `torchrun -m softmask train ...` and accelerate's launcher."""

import sys

from .cli.main import main

sys.exit(main())
