"""Trains the storyteller: `python texts.py PACKAGE > austen.txt; python train.py austen.txt weights.npz`, and then `export.py`.

A decoder as Llama's (RMS norms in front, rotary positions, no biases) of 2 M parameters: 4 layers of 6 heads of 32. Needs torch, and
five minutes of one core. Deterministic on one kind of processor: the seed is fixed and the steps are counted. (Another kind adds in another
order.)
"""

import json
import math
import pathlib
import re
import sys
import time
from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LAYERS, HEADS, SIZE, WIDTH = 4, 6, 32, 192
VOCABULARY = 1024
CONTEXT, BATCH = 288, 8
STEPS, WARM, RATE = 400, 40, 6e-3


def tokens(text: str) -> list[str]:
    """Byte-pair encoding: the printable characters, and again and again the most frequent pair of neighbours in a word."""
    words = Counter(re.findall(r" ?[A-Za-z]+| ?[^A-Za-z\s]+|\s", text))
    spelt = {word: list(word) for word in words}
    found = ["\n", *map(chr, range(32, 127))]
    while len(found) < VOCABULARY:
        pairs = Counter[tuple[str, str]]()
        for word, count in words.items():
            for pair in zip(spelt[word], spelt[word][1:], strict=False):
                pairs[pair] += count
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        found.append(left + right)
        for parts in spelt.values():
            if left in parts:
                at = 0
                while at < len(parts) - 1:
                    if parts[at] == left and parts[at + 1] == right:
                        parts[at : at + 2] = [left + right]
                    at += 1
    return found


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.relu(self.up(self.between(x))).square())


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al., 2021): the halves of a head are the parts of a complex number, which is turned by its position."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Teller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.after = nn.RMSNorm(WIDTH, eps=1e-5)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 1))
        turns = torch.arange(CONTEXT)[:, None] * 10000.0 ** (-torch.arange(SIZE // 2) / (SIZE // 2))
        self.register_buffer("cos", turns.cos())
        self.register_buffer("sin", turns.sin())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return functional.linear(self.after(x), self.words.weight)


def main(source: str, target: str) -> None:
    torch.manual_seed(7)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    text = pathlib.Path(source).read_text()
    place = pathlib.Path(__file__).with_name("tokens.json")
    if not place.exists():
        place.write_text(json.dumps(tokens(text)))
    from tokens import encode

    ids = torch.tensor(encode(text))
    kept = len(ids) // 50
    ids, held = ids[:-kept], ids[-kept:]
    model = Teller()
    print(f"{len(ids)} tokens, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = (
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )
    began = time.monotonic()

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARM) * (1 - step / STEPS)
        first = torch.randint(len(ids) - CONTEXT - 1, (BATCH, 1))
        loss = loss_of(ids[first + torch.arange(CONTEXT + 1)])
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step % 20 == 0 or step == STEPS - 1:
            print(f"{step}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    with torch.no_grad():
        windows = held[: len(held) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
        print(f"of what was held back: loss {loss_of(windows).item():.3f} a token, {len(text) / (len(ids) + kept):.2f} characters each")
    np.savez(target, **{name: weight.detach().numpy() for name, weight in model.named_parameters()})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
