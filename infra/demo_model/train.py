"""Trains the demo model from random weights and writes it in Hugging Face format.

Run from the repository root, with millrace[worker] installed:
python infra/demo_model/train.py --out infra/demo_model/model --minutes 6.2
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from batches import BatchSource, Group, prompt_ids
from decoder import Decoder, LayerPrefix, Shape
from evaluate import evaluate
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from vocabulary import END, PAD, save_tokenizer, train_tokenizer

_WARM_UP = 0.03


def learning_rate_scale(progress: float) -> float:
    """Factor of the peak learning rate at a share of the training time: a short rise, then a cosine down to zero."""
    if progress < _WARM_UP:
        return max(progress, 1e-3) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP))))


def to_device(array: NDArray[Any], device: str) -> Tensor:
    """The array as a tensor on the device, without waiting for the work that is queued there."""
    tensor = torch.from_numpy(array)
    # A copy from memory that is not pinned would wait.
    return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor.to(device)


def group_loss(model: Decoder, group: Group, prefixes: dict[str, list[LayerPrefix]], device: str) -> Tensor:
    """Mean loss of the tokens that the model must write."""
    ids = to_device(group.ids.astype("int64"), device)
    is_answer = to_device(group.is_answer, device)
    logits = model(ids[:, :-1], prefixes[group.prefix] if group.prefix else None)
    targets = ids[:, 1:].masked_fill(~is_answer[:, 1:], -100)
    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def train(model: Decoder, source: BatchSource, prompts: dict[str, Tensor], arguments: argparse.Namespace) -> None:
    """Train for arguments.minutes of wall time, whatever number of steps that is."""
    device = arguments.device
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
        betas=(0.9, 0.98),
        fused=device == "cuda",
    )
    source.get()  # The clock starts when the processes have begun to deliver.
    started = time.perf_counter()
    step = 0
    while (progress := (time.perf_counter() - started) / (60 * arguments.minutes)) < 1:
        for settings in optimizer.param_groups:
            settings["lr"] = arguments.learning_rate * learning_rate_scale(progress)
        groups = source.get()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            prefixes = {name: model.prefix(ids) for name, ids in prompts.items()}
            losses = torch.stack([group_loss(model, group, prefixes, device) for group in groups])
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % arguments.log_every == 0:
            shown = " ".join(f"{loss:.4f}" for loss in losses.tolist())
            print(f"step {step} {time.perf_counter() - started:.0f}s loss {shown}", flush=True)
        step += 1
    print(f"trained {step} steps", flush=True)


def save(model: Decoder, shape: Shape, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the model's files; weights are stored in bfloat16."""
    eos, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()
    }
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    config = shape.config(eos_token_id=eos, pad_token_id=pad)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"do_sample": False, "eos_token_id": eos, "pad_token_id": pad}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--minutes", type=float, default=6.2, help="training time, without start and evaluation")
    parser.add_argument("--rows", type=int, default=320, help="rows of each task in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--processes", type=int, default=12, help="processes that make training rows")
    parser.add_argument("--eval-count", type=int, default=400, help="held-out questions of each task; 0: no evaluation")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # cuDNN's attention makes a new plan for every shape, and the shapes change with every step.
    torch.backends.cuda.enable_cudnn_sdp(False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(arguments.vocab_size)
    shape = Shape(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.hidden_size * 5 // 2,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden_size // 64,
    )
    save_tokenizer(tokenizer, arguments.out, shape.max_position_embeddings)
    prompts = prompt_ids(tokenizer)
    print("system prompt tokens:", {name: len(ids) for name, ids in prompts.items()}, flush=True)

    model = Decoder(shape).to(arguments.device)
    print("parameters:", sum(p.numel() for p in model.parameters()), flush=True)
    source = BatchSource(
        arguments.out / "tokenizer.json", rows=arguments.rows, processes=arguments.processes, seed=arguments.seed
    )
    try:
        prompt_tensors = {name: torch.tensor([ids], device=arguments.device) for name, ids in prompts.items()}
        train(model, source, prompt_tensors, arguments)
    finally:
        source.close()
    save(model, shape, tokenizer, arguments.out)

    if arguments.eval_count:
        report = evaluate(arguments.out, count=arguments.eval_count, device=arguments.device)
        (arguments.out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
