"""Light PEFT under FSDP2, in two phases: estimate on the sharded base; cut a whole copy, and shard that.

torchrun --nproc_per_node 2 examples/two_phase.py MODEL OUT
"""

import sys

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer

import lightpeft
from lightpeft.processes import Processes
from lightpeft.tasks import encode, load_task

STEPS, ESTIMATION, ROWS, RATE = 24, 8, 8, 1e-3
PARTS = states.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
WHOLE = states.StateDictOptions(ignore_frozen_params=True, strict=False)
name, out = sys.argv[1:]
dist.init_process_group() if dist.is_torchelastic_launched() else None
processes = Processes.of_group()
tokenizer = AutoTokenizer.from_pretrained(name)
rows = encode(load_task("demo/sentiment", train_limit=ROWS * STEPS).train, tokenizer, max_length=64)
collate = DataCollatorWithPadding(tokenizer)
batches = [
    collate([rows[i] for i in range(s * ROWS + processes.index, (s + 1) * ROWS, processes.count)])
    for s in range(STEPS)
]


def uncut():
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear"))


def sharded(model, begun):
    if not processes.is_alone:
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        [fully_shard(part) for part in (*layers, model)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - (begun + step) / STEPS)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return model, optimizer


model, optimizer = sharded(uncut(), 0)
scores = lightpeft.estimate(
    model, batches, lightpeft.EstimationConfig(steps=ESTIMATION), optimizer=optimizer, processes=processes
)
weights, moments = states.get_state_dict(model, optimizer, options=PARTS)
if processes.is_first:
    whole = uncut()
    own = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=RATE)
    states.set_state_dict(whole, own, model_state_dict=weights, optim_state_dict=moments, options=WHOLE)
    plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(whole), lightpeft.Budget())
    lightpeft.cut(whole, plan, own, scores=scores, batch=batches[ESTIMATION - 1])
    lightpeft.save(whole, f"{out}/cut")
    torch.save(states.get_optimizer_state_dict(whole, own, options=PARTS), f"{out}/optimizer.pt")
processes.wait()

model, optimizer = sharded(lightpeft.load(f"{out}/cut", name, is_trainable=True), ESTIMATION)
moments = torch.load(f"{out}/optimizer.pt", weights_only=True)
states.set_optimizer_state_dict(model, optimizer, moments, options=PARTS)
model.train()
for batch in batches[ESTIMATION:]:
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
weights = states.get_model_state_dict(model, options=PARTS)
if processes.is_first:
    light = lightpeft.load(f"{out}/cut", name, is_trainable=True)
    states.set_model_state_dict(light, weights, options=WHOLE)
    lightpeft.save(light, f"{out}/light", tokenizer=tokenizer)
processes.wait()
