"""Light PEFT in TRL's DPOTrainer: one callback more.

The model without its adapter cannot be the reference once it is cut, so the reference is read before.

python examples/dpo.py MODEL OUT
"""

import sys

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import lightpeft
from lightpeft.tasks import load_task

name, out = sys.argv[1:]
task = load_task("demo/sentiment", train_limit=200).train
bad, good = ([row["text"] for row in task if row["label"] == label] for label in (0, 1))
pairs = zip(good, bad, strict=False)
rows = Dataset.from_list([{"prompt": "A review:", "chosen": f" {g}", "rejected": f" {b}"} for g, b in pairs])
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
light = lightpeft.LightCallback(lightpeft.LightConfig(lightpeft.EstimationConfig(steps=8)))
trainer = DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(name),
    args=DPOConfig(
        out,
        max_steps=16,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_length=48,
        precompute_ref_log_probs=True,
        bf16=False,
        seed=0,
    ),
    train_dataset=rows,
    processing_class=tokenizer,
    peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"),
    callbacks=[light],
)
trainer.train()
print(light.plan.describe())
lightpeft.save(trainer.model, f"{out}/light", tokenizer=tokenizer)
