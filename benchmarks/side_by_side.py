"""Text of an original and of packed models side by side, as transformers loads and generates them.

Greedy, so that what differs is what quantization changed. Prompts go through the chat template where there is one.

    python benchmarks/side_by_side.py ORIGINAL PACKED [PACKED ...]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "Why is the sky blue? Answer in one sentence.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Give me three tips for learning a new language.",
)


def generated(directory: Path, prompts: tuple[str, ...], tokens: int) -> list[str]:
    """What the model in `directory` answers to each prompt."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    answers = []
    for prompt in prompts:
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            ids = model.generate(
                **given, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None, top_k=None
            )
        answers.append(tokenizer.decode(ids[0, given.input_ids.shape[1] :], skip_special_tokens=True))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model directories")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per answer")
    options = parser.parse_args()
    answers = {directory: generated(directory, PROMPTS, options.tokens) for directory in options.models}
    for place, prompt in enumerate(PROMPTS):
        print(f"\n>>> {prompt}")
        for directory, texts in answers.items():
            print(f"\n[{directory.name}]\n{texts[place]}")


if __name__ == "__main__":
    main()
