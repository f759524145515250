"""Light PEFT in TRL's SFTTrainer: one callback more.

python examples/sft.py MODEL OUT
"""

import sys

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import lightpeft
from lightpeft.tasks import load_task

name, out = sys.argv[1:]
texts = load_task("demo/reviews", train_limit=120).train["text"][:]
rows = Dataset.from_list([{"prompt": text[:20], "completion": text[20:]} for text in texts])
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
light = lightpeft.LightCallback(lightpeft.LightConfig(lightpeft.EstimationConfig(steps=8)))
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(name),
    args=SFTConfig(
        out,
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_length=48,
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
