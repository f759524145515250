"""Light PEFT in a Seq2SeqTrainer that generates when it evaluates: one callback more.

python examples/seq2seq.py MODEL OUT
"""

import sys

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

import lightpeft
from lightpeft.tasks import load_task

name, out = sys.argv[1:]
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(name)
texts = load_task("demo/reviews", train_limit=120).train["text"][:]
rows = Dataset.from_list(
    [tokenizer(text, text_target=text.split(".")[0], truncation=True, max_length=48) for text in texts]
)
lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=8, target_modules="all-linear")
light = lightpeft.LightCallback(lightpeft.LightConfig(lightpeft.EstimationConfig(steps=8)))
trainer = Seq2SeqTrainer(
    model=get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(name), lora),
    args=Seq2SeqTrainingArguments(
        out,
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        predict_with_generate=True,
        seed=0,
    ),
    train_dataset=rows,
    eval_dataset=rows.select(range(8)),
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    compute_metrics=lambda found: {"tokens": float((found.predictions >= 0).sum())},
    callbacks=[light],
)
trainer.train()
print(light.plan.describe(), trainer.evaluate(max_new_tokens=16))
lightpeft.save(trainer.model, f"{out}/light", tokenizer=tokenizer)
