"""Exported edits in the programs that serve them: `make test-serving`; skipped where one is absent.

Each program is given what `docs/shipping.md` tells to give it, and must say what the model says
with the patch in its weights.
"""

import json
import subprocess
import time
from pathlib import Path
from socket import socket
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from transformers.utils.import_utils import is_serve_available

from lm_eval_oracle import harness_task
from pico import FAMILIES, pico, tokenizer
from retcon.data.tasks import Item, Option, Task
from retcon.model import hooks
from retcon.model.handle import ModelHandle
from retcon.patch.export.gguf import FILE, write_gguf
from retcon.patch.export.lora import lora_of
from retcon.patch.export.peft import write_peft
from retcon.patch.patch import Patch
from retcon.run import serving
from retcon.run.edit import edit
from test_methods import EDITS, FAST

pytestmark = [pytest.mark.serving, pytest.mark.filterwarnings("ignore")]
F32 = torch.float32


def patch_of(model: ModelHandle) -> Patch:
    return edit(model, EDITS[:3], method="emmet", layers=[1], settings=FAST)


def adapter(folder: Path, model: ModelHandle, patch: Patch) -> str:
    folder.mkdir()
    write_peft(folder, patch, lora_of(patch, model.outline, dtype=F32), model.outline, F32)
    return str(folder)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A model and the folder that it is in; as wide as the blocks that 4-bit weights come in."""
    kind, dimensions = FAMILIES["llama"]
    wide = {**dimensions, "hidden_size": 64, "intermediate_size": 128}
    monkeypatch.setitem(FAMILIES, "llama-wide", (kind, wide))
    model = pico("llama-wide")
    model.model.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    return model, str(tmp_path / "base")


def test_lm_evaluation_harness_reads_the_adapter(base, tmp_path):
    pytest.importorskip("peft", reason="needs peft")
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (lm-eval)")
    model, folder = base
    patch = patch_of(model)
    lora = adapter(tmp_path / "adapter", model, patch)
    cities = ("Rome", "Paris", "London")
    items = [
        Item(i, tuple(Option(fact.text, city) for city in cities), 0)
        for i, fact in enumerate(EDITS[:3])
    ]
    task = Task("cities", "sum", tuple(items))

    def said(arguments: str) -> torch.Tensor:
        found = lm_eval.simple_evaluate(
            model="hf", model_args=arguments, tasks=[harness_task(task)], device="cpu",
            bootstrap_iters=0, log_samples=True, batch_size=2,
        )  # fmt: skip
        samples = sorted(found["samples"]["cities"], key=lambda sample: sample["doc_id"])
        return torch.tensor([[float(r[0]) for r in s["filtered_resps"]] for s in samples])

    def native() -> torch.Tensor:
        return torch.tensor([[-nll(model, e.text, city) for city in cities] for e in EDITS[:3]])

    plain, edited = f"pretrained={folder},dtype=float32", f",peft={lora}"
    before = native()
    assert torch.allclose(said(plain), before, atol=1e-3)
    with patch.applied(model):
        after = native()
    assert torch.allclose(said(plain + edited), after, atol=1e-3)
    assert not torch.allclose(before, after, atol=0.1)


def nll(model: ModelHandle, prompt: str, target: str) -> float:
    """The summed negative log-probability of a target's tokens."""
    text = model.tokens.continuation(prompt, target)
    ids = torch.tensor([text.ids])
    logp = model.model(input_ids=ids).logits[0].log_softmax(-1)
    positions = range(text.start, len(text.ids))
    return -float(sum(logp[p - 1, text.ids[p]] for p in positions))


def test_an_adapter_beside_a_4_bit_base(base, tmp_path):
    """The adapter adds ΔW x to what the quantised matrix gives, and is taken off again."""
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    peft = pytest.importorskip("peft", reason="needs peft")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model, folder = base
    patch = patch_of(model)
    lora = adapter(tmp_path / "adapter", model, patch)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=F32)
    packed = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, device_map="cpu", dtype=F32
    )
    down = packed.model.layers[1].mlp.down_proj
    assert isinstance(down, bnb.nn.Linear4bit)
    ids, delta = torch.tensor([model.tokens.encode(EDITS[0].text)]), patch.deltas[1]
    # Only where there is a gradient does bitsandbytes multiply in the precision that it is told to.
    stream = packed.get_input_embeddings()(ids).detach().requires_grad_()
    plain = packed(inputs_embeds=stream).logits
    with hooks.add_to_outputs({1: down}, 1, lambda _layer, x: (x @ delta.right.mT) @ delta.left):
        wanted = packed(inputs_embeds=stream).logits
    served = peft.PeftModel.from_pretrained(packed, lora)
    assert torch.allclose(served(inputs_embeds=stream).logits, wanted, atol=1e-4)
    assert not torch.allclose(plain, wanted, atol=0.1)
    with served.disable_adapter():
        assert torch.equal(served(inputs_embeds=stream).logits, plain)


def test_transformers_serve_answers_with_both_models(base, tmp_path):
    if not is_serve_available():
        pytest.skip("needs the extra `serve`")
    model, folder = base
    patch = patch_of(model)
    serving.lay_out(tmp_path / "served", folder, patch)
    with socket() as free:
        free.bind((serving.HOST, 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(serving.command(port), cwd=tmp_path / "served")
    try:
        said = {name: asked(port, name) for name in ("base", "edited")}
    finally:
        server.terminate()
        server.wait()
    ids = torch.tensor([model.tokens.encode(EDITS[1].text)])

    def native() -> str:
        row = model.model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        return model.tokens.decode(row.tolist())

    assert said["base"] == native()
    with patch.applied(model):
        assert said["edited"] == native() != said["base"]


def asked(port: int, name: str) -> str:
    """Continuation of the second fact's prompt by a model of the server, once it has started."""
    body = {"model": name, "prompt": EDITS[1].text, "max_tokens": 12, "temperature": 0}
    ask = Request(
        f"http://{serving.HOST}:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    for _ in range(120):
        try:
            with urlopen(ask, timeout=60) as answer:
                return json.load(answer)["choices"][0]["text"]
        except URLError:
            time.sleep(1)
    raise TimeoutError("the server has not started")


def test_llama_cpp_reads_the_adapter(smollm2, tmp_path):
    """As close to the native patch as llama.cpp's base, which is quantised, is to ours."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    pytest.importorskip("gguf", reason="needs gguf")
    from retcon.model.smollm2 import gguf_file

    patch = edit(smollm2, EDITS[:3], method="memit", layers=[1], settings={"corpus_tokens": 4000})
    lora = lora_of(patch, smollm2.outline, dtype=F32)
    write_gguf(tmp_path, patch, lora, smollm2.outline, F32)

    def said(**options) -> torch.Tensor:
        engine = llama_cpp.Llama(
            str(gguf_file()), n_ctx=64, logits_all=True, verbose=False, n_threads=1, **options
        )
        rows: list[torch.Tensor] = []
        for fact in EDITS[:3]:
            engine.reset()
            ids = list(smollm2.tokens.encode(fact.text))
            engine.eval(ids)
            rows.append(torch.tensor(engine.scores[len(ids) - 1]).log_softmax(-1))
        return torch.stack(rows)

    def native() -> torch.Tensor:
        rows = [smollm2.tokens.encode(fact.text) for fact in EDITS[:3]]
        return torch.stack(
            [smollm2.model(torch.tensor([r])).logits[0, -1].log_softmax(-1) for r in rows]
        )

    before = native()
    with patch.applied(smollm2):
        after = native()
    noise = float((said() - before).abs().mean())
    error = float((said(lora_path=str(tmp_path / FILE)) - after).abs().mean())
    assert error < 3 * noise + 1e-3
    assert float((after - before).abs().mean()) > 3 * error


def test_vllm_reads_the_adapter(base, tmp_path):
    vllm = pytest.importorskip("vllm", reason="needs vllm")
    from vllm.lora.request import LoRARequest

    model, folder = base
    patch = patch_of(model)
    lora = lora_of(patch, model.outline, dtype=F32)
    path = adapter(tmp_path / "adapter", model, patch)
    engine = vllm.LLM(
        folder, enable_lora=True, max_lora_rank=lora.vllm_rank, dtype="float32", max_model_len=64
    )
    greedy = vllm.SamplingParams(temperature=0, max_tokens=4)
    prompts = [{"prompt_token_ids": list(model.tokens.encode(e.text))} for e in EDITS[:3]]
    found = engine.generate(prompts, greedy, lora_request=LoRARequest("edit", 1, path))
    with patch.applied(model):
        for prompt, one in zip(prompts, found, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            wanted = model.model.generate(ids, do_sample=False, max_new_tokens=4)[0, ids.shape[1] :]
            assert list(one.outputs[0].token_ids) == wanted.tolist()
