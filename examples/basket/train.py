"""Trains `model.onnx`: what does this customer put into the basket next? `python train.py online_retail.parquet`.

Needs polars, torch and onnx, in an environment of their own; one thread; some minutes. The same numbers each time on one machine and
version of torch. It writes the model, `products.txt` and `customers.json`, and prints how often the next product is among the ten.

The data are half a year of a real shop's invoices. A customer's invoices follow each other in time; each begins with product 0, which is no
product: "a visit begins". A tenth of the customers is held out: the model never saw them, and the hit rate is theirs.
"""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
import polars
import torch
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
PRODUCTS, WIDTH, MEMORY, TEN = 1000, 64, 128, 10
LENGTH, CROWD, EPOCHS = 64, 32, 14


def visits(path: str) -> tuple[list[str], dict[int, list[list[int]]]]:
    """The names of the most frequent products, 0 first, and each customer's visits in the order of time, as numbers of products."""
    rows = polars.read_parquet(path).filter(polars.col("CustomerID").is_not_null(), polars.col("Quantity") > 0)
    rows = rows.filter(polars.col("StockCode").str.contains(r"^\d{5}"), ~polars.col("InvoiceNo").str.starts_with("C"))
    rows = rows.with_columns(polars.col("InvoiceDate").str.to_datetime("%m/%d/%y %H:%M"))
    counts = rows.group_by("StockCode").agg(polars.len(), polars.col("Description").first())
    best = counts.sort(["len", "StockCode"], descending=[True, False]).head(PRODUCTS)
    number = {code: n for n, code in enumerate(best["StockCode"], 1)}
    found: dict[int, list[list[int]]] = {}
    for customer, _, _, codes in (
        rows.group_by("CustomerID", "InvoiceDate", "InvoiceNo", maintain_order=True)
        .agg("StockCode")
        .sort("CustomerID", "InvoiceDate", "InvoiceNo")
        .iter_rows()
    ):
        basket = list(dict.fromkeys(number[code] for code in codes if code in number))  # a line that is split counts once
        if basket:
            found.setdefault(customer, []).append(basket)
    return ["(a visit begins)", *(name.strip() for name in best["Description"])], found


def held_out(customer: int) -> bool:
    return hashlib.sha256(str(customer).encode()).digest()[0] < 26


def sequence(baskets: list[list[int]]) -> list[int]:
    return [product for basket in baskets for product in (0, *basket)]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(PRODUCTS + 1, WIDTH)
        self.memory = torch.nn.GRU(WIDTH, MEMORY, batch_first=True)
        self.narrow = torch.nn.Linear(MEMORY, WIDTH)
        self.bias = torch.nn.Parameter(torch.zeros(PRODUCTS + 1))
        self.drop = torch.nn.Dropout(0.2)
        torch.nn.init.normal_(self.table.weight, std=0.3)

    def forward(self, products: torch.Tensor, h: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        seen, h = self.memory(self.drop(self.table(products)), h)
        return self.narrow(self.drop(seen)) @ self.table.weight.T + self.bias, h


def train(sequences: list[list[int]]) -> Net:
    torch.manual_seed(0)
    net = Net()
    pieces = [each[n : n + LENGTH + 1] for each in sequences for n in range(0, len(each) - 1, LENGTH)]
    padded = torch.tensor([piece + [-1] * (LENGTH + 1 - len(piece)) for piece in pieces])
    steps = EPOCHS * (len(pieces) // CROWD + 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        net.train()
        total = 0.0
        for batch in torch.randperm(len(pieces)).split(CROWD):
            rows = padded[batch]
            target = rows[:, 1:].clone()
            target[target <= 0] = -1  # that a visit begins is the caller's to say
            scores, _ = net(rows[:, :-1].clamp(min=0))
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten(), ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch}: loss {total / len(pieces):.3f}", flush=True)
    return net.eval()


def write(net: Net, path: pathlib.Path) -> None:
    """One step of it for any number of sessions: `item` [batch] and h0 [1, batch, 128] in, the ten best, their chances, and hN out."""
    weights = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    # ONNX keeps the gates as update, reset, new; torch as reset, update, new.
    gates = {
        name: weights[f"memory.{name}_l0"].reshape(3, MEMORY, -1)[[1, 0, 2]] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    never = weights["bias"].copy()
    never[0] = -1e9  # no product
    constants = {
        "table": weights["table.weight"],
        "w": gates["weight_ih"].reshape(1, 3 * MEMORY, WIDTH),
        "r": gates["weight_hh"].reshape(1, 3 * MEMORY, MEMORY),
        "b": np.concatenate([gates["bias_ih"].reshape(1, -1), gates["bias_hh"].reshape(1, -1)], axis=1),
        "narrow": weights["narrow.weight"].T.copy(),
        "narrow_bias": weights["narrow.bias"],
        "bias": never,
        "first": np.array([0]),
        "ten": np.array([TEN]),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "item"], ["seen"]),
        node("Unsqueeze", ["seen", "first"], ["step"]),
        node("GRU", ["step", "w", "r", "b", "", "h0"], ["", "hN"], hidden_size=MEMORY, linear_before_reset=1),
        node("Squeeze", ["hN", "first"], ["h"]),
        node("Gemm", ["h", "narrow", "narrow_bias"], ["narrowed"]),
        node("Gemm", ["narrowed", "table", "bias"], ["every"], transB=1),
        node("Softmax", ["every"], ["chances"], axis=1),
        node("TopK", ["chances", "ten"], ["chance", "next"], axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "basket",
        [value("item", TensorProto.INT64, ["batch"]), value("h0", TensorProto.FLOAT, [1, "batch", MEMORY])],
        [
            value("next", TensorProto.INT64, ["batch", TEN]),
            value("chance", TensorProto.FLOAT, ["batch", TEN]),
            value("hN", TensorProto.FLOAT, [1, "batch", MEMORY]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="examples/basket/train.py")
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def hits(sequences: list[list[int]], best: Callable[[list[int]], Sequence[Collection[int]]]) -> float:
    """How often the next product is among the ten of `best(sequence)`, which gives ten for each place but the last."""
    right = every = 0
    for each in sequences:
        for ten, product in zip(best(each), each[1:], strict=True):
            if product:
                every += 1
                right += product in ten
    return right / every


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    names, customers = visits(sys.argv[1])
    known = [sequence(v) for c, v in customers.items() if not held_out(c)]
    unknown = {c: sequence(v) for c, v in customers.items() if held_out(c)}
    print(f"{len(customers)} customers, {len(unknown)} of them held out; {sum(map(len, known))} steps to learn from")
    net = train(known)
    write(net, HERE / "model.onnx")

    often = np.zeros((PRODUCTS + 1, PRODUCTS + 1))
    for each in known:
        np.add.at(often, (each[:-1], each[1:]), 1)
    often[:, 0] = -1
    popular = set(np.argsort(-often.clip(0).sum(0), kind="stable")[:TEN].tolist())
    followers = [set(np.argsort(-(row + often.clip(0).sum(0) * 1e-6), kind="stable")[:TEN].tolist()) for row in often]

    @torch.no_grad()
    def learned(each: list[int]) -> list[list[int]]:
        scores, _ = net(torch.tensor([each[:-1]]))
        scores[..., 0] = -1e9
        return scores[0].topk(TEN).indices.tolist()

    @torch.no_grad()
    def forgetting(each: list[int]) -> list[list[int]]:
        scores, _ = net(torch.tensor(each[:-1])[:, None])
        scores[..., 0] = -1e9
        return scores[:, 0].topk(TEN).indices.tolist()

    told = {
        "popularity": hits(list(unknown.values()), lambda each: [popular] * (len(each) - 1)),
        "what most often follows this product": hits(list(unknown.values()), lambda each: [followers[p] for p in each[:-1]]),
        "model, without its memory": hits(list(unknown.values()), forgetting),
        "model": hits(list(unknown.values()), learned),
    }
    for name, rate in told.items():
        print(f"hit rate at ten, held out, {name}: {rate:.3f}")
    print(f"the model on those it learned from: {hits(known[:300], learned):.3f}")
    (HERE / "products.txt").write_text("\n".join(names) + "\n")
    chosen = [each for each in unknown.values() if 41 <= len(each) <= 200][:40]
    (HERE / "customers.json").write_text("\n".join(["[", ",\n".join(json.dumps(each) for each in chosen), "]"]) + "\n")


if __name__ == "__main__":
    main()
