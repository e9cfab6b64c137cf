"""The one value that crosses from the engine to the model in a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from millrace_kernels import DecodePlan


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T tokens of S sequences for one forward pass; every tensor lies on the model's device.

    The first `num_decodes` tokens are the one-token decodes of the first `num_decodes` sequences; the tokens of the
    other sequences follow, each sequence's in order, as the last tokens of its context.

    In the fixed shapes of CUDA graphs, sequences of the decode part that are not there are not in the plan, and their
    tokens may belong to prefills; prefills that are not there have no tokens; tokens that are not there have slot -1.
    """

    input_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    #: block * block_size + offset of the slot that takes a token's key and value; below 0: stored nowhere.
    slot_mapping: torch.Tensor  # [T] int64
    num_decodes: int
    block_tables: torch.Tensor  # [L, M] int32
    #: Whose line of the block tables is which, decodes first.
    lines: torch.Tensor  # [S] int32
    #: Tokens in the cache after this step's are stored.
    context_lens: torch.Tensor  # [S] int32
    #: Where each prefill's tokens start, and where the last one's end.
    cu_seqlens_q: torch.Tensor  # [S - num_decodes + 1] int32
    #: Most tokens that one prefill has in this step; 0 without prefills.
    max_query_len: int
    #: Tokens whose logits are wanted.
    logits_rows: torch.Tensor  # [R] int64
    #: [L] int64, where input_ids may be -1 - l, which stands for the id in line l.
    newest: torch.Tensor | None = None
    #: What the kernels go by for the decodes; None: it is made from the context lengths, read on the host.
    decode_plan: DecodePlan | None = None
    #: What lets a few prefills' contexts be read in parts: see millrace_kernels.prefill_arrivals.
    prefill_arrivals: torch.Tensor | None = None
