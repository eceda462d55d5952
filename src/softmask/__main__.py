"""python -m softmask, for `torchrun -m softmask train ...` and `accelerate launch -m softmask ...`."""

import sys

from .cli import main

sys.exit(main())
