"""The other process: reads lines of a folder, inputs, outputs and a precision, writes logits."""

import sys

import torch
from safetensors.torch import load_file, save_file

import lightpeft


@torch.no_grad()
def main() -> None:
    """Answer one line a folder."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        folder, inputs, outputs, precision = line.rstrip("\n").split("\t")
        try:
            model = lightpeft.load(folder).base_model
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found = model(**load_file(inputs))
            logits = {key: value.contiguous() for key, value in found.items() if key.endswith("logits")}
            save_file(logits, outputs)
            answer = "done"
        except Exception as error:  # told to the test, which fails with it
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
