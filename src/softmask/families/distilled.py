"""Dream and LLaDA trained on to be decoded in another way: dParallel, d3LLM, DiffuCoder.

czg1225/dParallel, hao-ai-lab/d3LLM, apple/ml-diffucoder. Their files are those of the model they
come from, so they are known by their Hub ids, or because a user says so. The thresholds are those
of their published evaluations; a task's own, where it differs, is in their papers.
"""

from dataclasses import replace

from .dream import DREAM
from .llada import LLADA


def _parallel(entropy_threshold: float, **more: object) -> dict[str, object]:
    """Every position of an open block whose entropy is low enough, in blocks of 32."""
    return {
        "alg": "entropy",
        "entropy_threshold": entropy_threshold,
        "block_length": 32,
        **more,
    }


DPARALLEL_DREAM = replace(
    DREAM,
    name="dparallel-dream",
    title="dParallel (Dream)",
    explicit=True,
    hub=("Zigeng/dParallel_Dream_7B_Instruct",),
    sampling=_parallel(0.45),
)
DPARALLEL_LLADA = replace(
    LLADA,
    name="dparallel-llada",
    title="dParallel (LLaDA)",
    explicit=True,
    hub=("Zigeng/dParallel-LLaDA-8B-instruct",),
    sampling=_parallel(0.5),
)
D3LLM_DREAM = replace(
    DREAM,
    name="d3llm-dream",
    title="d3LLM (Dream)",
    explicit=True,
    hub=("d3LLM/d3LLM_Dream", "d3LLM/d3LLM_Dream_Coder"),
    sampling=_parallel(0.4, next_block_at=0.1, stop_rule="first_end"),
)
D3LLM_LLADA = replace(
    LLADA,
    name="d3llm-llada",
    title="d3LLM (LLaDA)",
    explicit=True,
    hub=("d3LLM/d3LLM_LLaDA",),
    sampling=_parallel(0.5, next_block_at=0.1, surest_anywhere=True, stop_rule="first_end"),
)
DIFFUCODER = replace(
    DREAM,
    name="diffucoder",
    title="DiffuCoder",
    explicit=True,
    hub=(
        "apple/DiffuCoder-7B-Base",
        "apple/DiffuCoder-7B-Instruct",
        "apple/DiffuCoder-7B-cpGRPO",
    ),
    sampling={"alg": "entropy", "temperature": 0.3, "top_p": 0.95},
)
