"""Light PEFT in sentence-transformers: one callback more; the model keeps its pooling and its ways.

python examples/sentence_embeddings.py MODEL OUT
"""

import sys

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

import lightpeft
from lightpeft.tasks import load_task

name, out = sys.argv[1:]
rows = load_task("demo/sentiment", sizes={"train": 240, "validation": 40}).train
pairs = Dataset.from_dict(
    {
        "sentence1": rows["text"][:120],
        "sentence2": rows["text"][120:],
        "score": [float(a == b) for a, b in zip(rows["label"][:120], rows["label"][120:], strict=True)],
    }
)
encoder = SentenceTransformer(name, device="cpu")
lora = LoraConfig(task_type="FEATURE_EXTRACTION", r=8, target_modules="all-linear")
encoder[0].model = get_peft_model(encoder[0].model, lora)
light = lightpeft.LightCallback(lightpeft.LightConfig(lightpeft.EstimationConfig(steps=8)))
trainer = SentenceTransformerTrainer(
    encoder,
    Arguments(out, max_steps=20, per_device_train_batch_size=8, learning_rate=1e-3, save_strategy="no"),
    train_dataset=pairs,
    loss=CoSENTLoss(encoder),
    callbacks=[light],
)
trainer.train()
print(light.plan.describe())
lightpeft.save(encoder[0].model, f"{out}/light", tokenizer=encoder.tokenizer)
trained = encoder.encode(["a fine day"])
again = SentenceTransformer(name, device="cpu")
again[0].model = lightpeft.load(f"{out}/light")
assert abs(again.encode(["a fine day"]) - trained).max() < 1e-5
lightpeft.export_merged(f"{out}/light", f"{out}/merged")
encoder[0].model = lightpeft.load_merged(f"{out}/merged")
encoder.save(f"{out}/sentences")
alone = SentenceTransformer(f"{out}/sentences", device="cpu")  # wherever lightpeft was imported
assert abs(alone.encode(["a fine day"]) - trained).max() < 1e-5
