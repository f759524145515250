"""Light PEFT in a training loop of your own: estimate, plan, cut, and go on.

python examples/accelerate_loop.py MODEL OUT
"""

import itertools
import sys

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

import lightpeft
from lightpeft.tasks import encode, load_task

name, out = sys.argv[1:]
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(name)
rows = encode(load_task("demo/sentiment", train_limit=160).train, tokenizer, max_length=64)
base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear"))
accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(
    model,
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3),
    DataLoader(rows, batch_size=8, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer)),
)
batches = itertools.chain.from_iterable(itertools.repeat(loader))

scores = lightpeft.estimate(
    model, itertools.islice(batches, 8), lightpeft.EstimationConfig(steps=8), optimizer=optimizer
)
plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(model), lightpeft.Budget())
lightpeft.cut(model, plan, optimizer, scores=scores, batch=next(batches))
print(plan.describe())

model.train()
for batch in itertools.islice(batches, 20):
    accelerator.backward(model(**batch).loss)
    optimizer.step()
    optimizer.zero_grad()
lightpeft.save(model, f"{out}/light", tokenizer=tokenizer)
