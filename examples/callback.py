"""Light PEFT in a plain transformers Trainer script: one callback more.

python examples/callback.py MODEL OUT
"""

import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lightpeft
from lightpeft.tasks import encode, load_task

name, out = sys.argv[1:]
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(name)
task = load_task("demo/sentiment", train_limit=240)
model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets)
light = lightpeft.LightCallback(lightpeft.LightConfig(lightpeft.EstimationConfig(steps=10)))
trainer = Trainer(
    model=get_peft_model(model, lora),
    args=TrainingArguments(out, max_steps=30, per_device_train_batch_size=8, learning_rate=1e-3, seed=0),
    train_dataset=encode(task.train, tokenizer, max_length=64),
    data_collator=DataCollatorWithPadding(tokenizer),
    callbacks=[light],
)
trainer.train()
print(light.plan.describe())
lightpeft.save(trainer.model, f"{out}/light", tokenizer=tokenizer)
