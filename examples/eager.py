"""A feedback rule: the longer a token has led at a position, the more of it is fed back.

    softmask generate "One day, Tom" --soft-mask-mode eager:eager --soft-mask-options rate=0.3

The published rule (mode "topk") looks at the entropy of this step alone. lambda is scale * r(t)
times what a rule returns, so `scale`, `schedule`, `k` and `mixture` mean what they always do.
"""

from torch import Tensor

import softmask


@softmask.feedback_rule("eager", state={"token": -1, "trust": 0.0})
def eager(rows: softmask.MaskedRows, *, rate: float = 0.5) -> Tensor:
    """Trust in a token rises while it leads, and is lost with the lead."""
    same_N = rows.tokens_N == rows.state["token"]
    trust_N = rate + (1 - rate) * rows.state["trust"] * same_N
    rows.state.update(token=rows.tokens_N, trust=trust_N)
    return trust_N
