"""Naive twins of all that is fast: the papers' own formulas, one edit and one text at a time."""

import itertools
import math
import random
import warnings
import zlib

import torch
from torch import Tensor

from retcon.edits import Case, Edit
from retcon.model.handle import ModelHandle


def rome_primal(C: Tensor, key: Tensor, read: Tensor, residual: Tensor) -> Tensor:
    """ROME, arXiv:2202.05262 eq. 2: ΔW = Λ (C⁻¹k*)ᵀ, Λ = (v* − Wk) / (C⁻¹k*)ᵀk."""
    u = torch.linalg.inv(C) @ key
    return torch.outer(residual / (u @ read), u)


def emmet_primal(
    C: Tensor, K: Tensor, R: Tensor, alpha: float = 0.0, weight: float = 1.0
) -> Tensor:
    """EMMET, arXiv:2403.14236 eq. 11, columns turned to rows; α and w are its released code's."""
    inverse = torch.linalg.inv(weight * C)
    D = K @ inverse @ K.mT + alpha * torch.eye(len(K), dtype=K.dtype)
    return R.mT @ torch.linalg.inv(D) @ K @ inverse


def memit_primal(C: Tensor, K: Tensor, R: Tensor, weight: float) -> Tensor:
    """MEMIT, arXiv:2210.07229 eq. 14: ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ with edits in columns."""
    return R.mT @ K @ torch.linalg.inv(weight * C + K.mT @ K)


def put_in(context: str, edit: Edit) -> tuple[str, int]:
    """A prompt in the place of {}, or behind a prefix, and where its subject ends."""
    before, after = context.split("{}") if "{}" in context else (context, "")
    return before + edit.text + after, len(before) + edit.subject_end


def average_key(
    model: ModelHandle, edit: Edit, prefixes: tuple[str, ...], layer: int, weights: Tensor
) -> Tensor:
    """A key by whole forward passes, one text at a time, and the tokens of the text up to there."""
    keys: list[Tensor] = []
    module = model.site(layer).module
    for prefix in prefixes:
        text, end = put_in(prefix, edit)
        position = len(model.tokens.encode(text[:end])) - 1
        seen: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model.model(input_ids=torch.tensor([model.tokens.encode(text)]), use_cache=False)
        handle.remove()
        keys.append(seen[0].reshape(1, -1, seen[0].shape[-1])[0, position].double())
    return torch.einsum("c,cd->d", weights, torch.stack(keys))


def optimise_one_target(
    model: ModelHandle, edit: Edit, prefixes: tuple[str, ...], layer: int, options, whitening=None
) -> tuple[Tensor, int, float]:
    """δ of one edit as in the released MEMIT code: whole texts, all logits, padded on the right."""
    encode = model.tokens.encode
    texts, ends = zip(*(put_in(prefix, edit) for prefix in prefixes), strict=True)
    wholes = [encode(f"{text} {edit.target}") for text in texts]
    starts = [len(encode(text)) for text in texts]
    lookups = [len(encode(t[:e])) - 1 for t, e in zip(texts, ends, strict=True)]
    about = encode(f"{edit.subject} is a")
    rows = [whole[:-1] for whole in wholes] + [about]
    lookups.append(len(encode(edit.subject)) - 1)
    batch = model.tokens.pad(rows)
    site = (
        model.architecture.blocks[layer]
        if options.insertion == "block"
        else model.site(layer).module
    )
    anchor: list[Tensor] = []
    delta = torch.zeros(model.hidden, dtype=model.dtype, requires_grad=True)

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        shape = hidden.shape
        hidden = hidden.reshape(len(rows), -1, shape[-1])
        if not anchor:
            anchor.append(hidden[0, lookups[0]].detach().clone())
        hidden = hidden.clone()
        for row, position in enumerate(lookups):
            hidden[row, position] = hidden[row, position] + delta
        hidden = hidden.view(shape)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    adam = torch.optim.Adam([delta], lr=options.lr)
    turned: list[Tensor] = []
    leads: dict[int, float] = {}
    before: Tensor | None = None
    loss_value = steps = 0
    at_once = options.contexts_per_step or len(texts)
    seen: dict[int, float] = {}
    said: dict[int, bool] = {}
    hits = 0
    handle = site.register_forward_hook(hook)
    try:
        for step in range(options.steps):
            adam.zero_grad()
            logp = model.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits.log_softmax(-1)
            nll = torch.zeros(())
            looked = sorted((step * at_once + i) % len(texts) for i in range(at_once))
            if options.descent == "sphere" and step == 0:
                looked = list(range(len(texts)))
            for row in looked:
                whole, places = wholes[row], range(starts[row], len(wholes[row]))
                mean = -sum(logp[row, t - 1, whole[t]] for t in places) / len(places)
                nll = nll + mean / len(looked)
                seen[row] = mean.item()
                said[row] = all(int(logp[row, t - 1].argmax()) == whole[t] for t in places)
            now = logp[len(texts), lookups[-1]]
            before = now.detach().clone() if before is None else before
            kl = (now.exp() * (now - before)).sum()
            decay = options.decay * delta.norm() / anchor[0].norm() ** 2
            loss = nll + options.kl * kl + decay
            kept = (options.kl * kl + decay).item()
            loss_value, steps = sum(seen.values()) / len(seen) + kept, step + 1
            less = decay.item() if options.stop_by == "fit" else 0.0
            good = loss_value - less < options.stop_below
            if options.stop_margin is not None:
                leads.update(
                    (row, min(lead(logp[row, t - 1], whole[t]) for t in range(start, len(whole))))
                    for row, (start, whole) in enumerate(zip(starts, wholes, strict=True))
                    if row in looked
                )
                good |= min(leads.values()) >= options.stop_margin
            # ENCORE's release leaves the first text out, which is the bare prompt, and counts.
            asked = [said.get(row, False) for row in range(len(texts))][1:] or [said[0]]
            hits += len(seen) == len(texts) and all(asked)
            good |= 0 < options.stop_when_said <= hits
            if (good and len(seen) == len(texts)) or step == options.steps - 1:
                break
            loss.backward()
            limit = options.clamp * anchor[0].norm()
            if options.descent == "sphere":
                turn(delta, float(limit), nll.item(), turned, options, whitening)
                continue
            adam.step()
            with torch.no_grad():
                if delta.norm() > limit:
                    delta.mul_(limit / delta.norm())
    finally:
        handle.remove()
    return delta.detach(), steps, loss_value


def lead(logp: Tensor, token: int) -> float:
    """How far a token is before the best other one."""
    others = [value for i, value in enumerate(logp.tolist()) if i != token]
    return logp[token].item() - max(others)


def turn(delta, radius: float, loss: float, turned: list[Tensor], options, whitening=None) -> None:
    """One move of δ on the sphere of its clamp; `turned` is the last turn and the largest next."""
    gradient = delta.grad
    whitening = torch.eye(len(delta)) if whitening is None else whitening
    whitening = whitening.to(delta)
    with torch.no_grad():
        if not delta.any():
            shaped = whitening @ (gradient.sign() * gradient.abs() ** options.power)
            delta.copy_(-radius * shaped / shaped.norm())
            most = torch.tensor(math.radians(options.largest_turn), dtype=delta.dtype)
            turned[:] = [torch.zeros_like(delta), most]
            return
        here = delta / delta.norm()
        along = gradient - (gradient @ here) * here
        last, limit = turned
        if along @ last > 0:
            limit = (0.75 * limit).clamp_min(math.radians(3.0))
        way = whitening @ (along.sign() * along.abs() ** options.power)
        way = way - (way @ here) * here
        way = way / way.norm()
        angle = min(float(limit), options.reach * loss / (radius * float(along @ way)))
        move = options.momentum * last - angle * way
        move = move - (move @ here) * here
        if move.norm() > limit:
            move = move * limit / move.norm()
        turned[:] = [move, limit]
        theta = float(move.norm())
        delta.copy_(radius * (math.cos(theta) * here + math.sin(theta) * move / move.norm()))


def mean_nll(model: ModelHandle, text: str, target: str) -> float:
    """−(1/|y|) Σ log p(yₜ | x, y₍<t₎), one unpadded text, all logits."""
    head, whole = model.tokens.encode(text), model.tokens.encode(f"{text} {target}")
    with torch.no_grad():
        logp = model.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    picked = [logp[t - 1, whole[t]].item() for t in range(len(head), len(whole))]
    return -sum(picked) / len(picked)


def score_one_batch(model: ModelHandle, case: Case) -> list[tuple[float, int]]:
    """Mean NLL and hits of each prompt with each target, as the released ROME code scores a case.

    All its sequences are one batch, padded on the right to the longest, with all logits.
    """
    texts = [case.edit.text, *case.paraphrases, *case.neighbours]
    pairs = [
        (text, target) for text in texts for target in (case.edit.target, case.edit.target_old)
    ]
    heads = [len(model.tokens.encode(text)) for text, _ in pairs]
    wholes = [model.tokens.encode(f"{text} {target}") for text, target in pairs]
    batch = model.tokens.pad(wholes)
    with torch.no_grad():
        logits = model.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
    found: list[tuple[float, int]] = []
    for row, start, whole in zip(logits, heads, wholes, strict=True):
        nll, hits = 0.0, 0
        for t in range(start, len(whole)):
            nll -= row[t - 1].log_softmax(-1)[whole[t]].item() / (len(whole) - start)
            hits += int(row[t - 1].argmax() == whole[t])
        found.append((nll, hits))
    return found


def scores_by_loop(model: ModelHandle, cases: list[Case]) -> dict[str, float]:
    """ES, PS, NS by one prompt at a time, as they are defined."""
    means: dict[str, list[float]] = {"ES": [], "PS": [], "NS": []}
    for case in cases:
        new, old = case.edit.target, case.edit.target_old
        assert old is not None

        def gap(text: str, new: str = new, old: str = old) -> float:
            return mean_nll(model, text, old) - mean_nll(model, text, new)

        means["ES"].append(float(gap(case.edit.text) > 0))
        means["PS"].append(sum(gap(p) > 0 for p in case.paraphrases) / len(case.paraphrases))
        means["NS"].append(sum(gap(p) < 0 for p in case.neighbours) / len(case.neighbours))
    return {name: 100 * sum(found) / len(found) for name, found in means.items()}


def second_moment(model: ModelHandle, texts: list[str], layer: int) -> tuple[Tensor, int]:
    """Σ k kᵀ over every token, one text at a time."""
    d_in = model.site(layer).d_in
    total, tokens = torch.zeros(d_in, d_in, dtype=torch.float64), 0
    seen: list[Tensor] = []
    handle = model.site(layer).module.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    for text in texts:
        seen.clear()
        with torch.no_grad():
            model.model(input_ids=torch.tensor([model.tokens.encode(text)]), use_cache=False)
        keys = seen[0].reshape(-1, d_in)
        total += sum_of_outer_products(keys)
        tokens += len(keys)
    handle.remove()
    return total, tokens


def sum_of_outer_products(keys: Tensor) -> Tensor:
    """Σ k kᵀ in float64, one key at a time."""
    total = torch.zeros(keys.shape[1], keys.shape[1], dtype=torch.float64)
    for key in keys.double():
        total += torch.outer(key, key)
    return total


def cluster_jackknife(statistic, values: dict[str, float], clusters: dict[str, str]) -> float:
    """Standard error with one cluster left out at a time: √((G−1)/G Σ (θ₍₋g₎ − θ̄)²)."""
    names = sorted(set(clusters.values()))
    left = [statistic({c: v for c, v in values.items() if clusters[c] != g}) for g in names]
    average = sum(left) / len(left)
    groups = len(names)
    return ((groups - 1) / groups * sum((x - average) ** 2 for x in left)) ** 0.5


def answers_weigh_more(model, rows, weight):
    """Mean NLL a token, text by text; what stands before a full stop (id 2) counts more."""
    total = weights = 0.0
    for ids in rows:
        with torch.no_grad():
            said = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(1, len(ids)):
            answer = place + 1 < len(ids) and ids[place + 1] == 2
            own = weight if answer else 1.0
            total -= own * said[place - 1, ids[place]].item()
            weights += own
    return total / weights


def joint_solution(C: Tensor, K: Tensor, V: Tensor, ridge: float) -> Tensor:
    """D of all facts at once, by the normal equations: (VᵀK)(ρC + KᵀK)⁻¹."""
    return V.mT @ K @ torch.linalg.inv(ridge * C + K.mT @ K)


def accuracy_by_retokenising(model: ModelHandle, prompt: str, answer: str) -> float:
    """zsRE's score as released code takes it (arXiv:2210.07229): each prefix is a text of its own.

    It takes the first id of a decoded token for that token, so it holds only for tokenizers that
    put nothing before a text, and for tokens that are whole characters.
    """
    tok = model.tokens.tokenizer
    target = tok(f" {answer}")["input_ids"]
    hits = 0
    for i, piece in enumerate(target):
        ids = tok(prompt + tok.decode(target[:i]))["input_ids"]
        with torch.no_grad():
            top = model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
        hits += int(top) == tok(tok.decode([piece]))["input_ids"][0]
    return hits / len(target)


def says_one_of(model: ModelHandle, text: str, answers: list[str], new_tokens: int) -> bool:
    """Whether greedy generation, a token at a time without a cache, begins with an answer."""
    ids = list(model.tokens.encode(text))
    head = len(ids)
    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    said = " ".join(model.tokens.decode(ids[head:]).split())
    return any(said.startswith(a) and not said[len(a) : len(a) + 1].isalnum() for a in answers)


def written_alone(model: ModelHandle, text: str, new_tokens: int) -> str:
    """What follows one prompt by itself, by the model's own loop, up to where it ends the text."""
    ids = torch.tensor([model.tokens.prompt(text)])
    with torch.no_grad():
        out = model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=1,
        )
    new = out[0, ids.shape[1] :].tolist()
    end = [i for i, one in enumerate(new) if one in model.tokens.special]
    return model.tokens.decode_begun(new[: end[0]] if end else new)


def perplexity_by_loop(model: ModelHandle, texts: list[str], length: int) -> float:
    """exp of the mean NLL of every token but the first, one unpadded text at a time."""
    total, tokens = 0.0, 0
    for text in texts:
        ids = model.tokens.encode(text)[:length]
        with torch.no_grad():
            logp = model.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for t in range(1, len(ids)):
            total, tokens = total - logp[t - 1, ids[t]].item(), tokens + 1
    return float(torch.tensor(total / tokens, dtype=torch.float64).exp())


def answer_rows(model: ModelHandle, edit: Edit, layer: int) -> tuple[Tensor, Tensor, float]:
    """Inputs, and gradients of the outputs, of a layer's matrix where the target is predicted.

    One whole text, and its mean NLL per token.
    """
    head = model.tokens.encode(edit.text)
    whole = model.tokens.encode(f"{edit.text} {edit.target}")
    seen: dict[str, Tensor] = {}

    def hook(_module, args, output):
        seen["x"] = args[0].detach()
        seen["y"] = output.detach().clone().requires_grad_()
        return seen["y"]

    handle = model.site(layer).module.register_forward_hook(hook)
    try:
        logp = model.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
    finally:
        handle.remove()
    logp, places = logp.log_softmax(-1), range(len(head), len(whole))
    loss = -sum(logp[t - 1, whole[t]] for t in places) / len(places)
    loss.backward()
    at = [t - 1 for t in places]
    x, slope = (t.reshape(-1, t.shape[-1]) for t in (seen["x"], seen["y"].grad))
    return x[at], slope[at], loss.item()


def ultraedit_primal(H: Tensor, G: Tensor, past: Tensor, lr: float, alpha: float) -> Tensor:
    """UltraEdit, arXiv:2505.14679: ΔWᵀ = (HᵀH + αI)⁻¹ HᵀV with vᵢ = −lr ‖ĥᵢ‖² ĝᵢ.

    past: [h | g] of all rows so far, these included, by which they are normalised.
    """
    rows = torch.cat([H, G], 1)
    hat = (rows - past.mean(0)) / past.std(0)
    h, g = hat[:, : H.shape[1]], hat[:, H.shape[1] :]
    V = torch.stack([-lr * h_i.norm() ** 2 * g_i for h_i, g_i in zip(h, g, strict=True)])
    one = torch.eye(H.shape[1], dtype=H.dtype)
    return torch.linalg.solve(H.mT @ H + alpha * one, H.mT @ V).mT


def finetune_in_a_box(
    model: ModelHandle, edits: list[Edit], layer: int, *, steps: int, lr: float, epsilon: float
) -> Tensor:
    """ΔW of one matrix by Adam on the weight itself, text by text, clamped after each step."""
    stored = model.site(layer).module.weight
    before = stored.detach().clone()
    stored.requires_grad_()
    adam = torch.optim.Adam([stored], lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        for edit in edits:
            head = model.tokens.encode(edit.text)
            whole = model.tokens.encode(f"{edit.text} {edit.target}")
            logits = model.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
            logp, places = logits.log_softmax(-1), range(len(head), len(whole))
            loss = -sum(logp[t - 1, whole[t]] for t in places) / len(places)
            (loss / len(edits)).backward()
        adam.step()
        with torch.no_grad():
            stored.clamp_(before - epsilon, before + epsilon)
    stored.requires_grad_(False)
    change = stored.detach() - before
    stored.copy_(before)
    return change.mT if model.site(layer).transposed else change


def lora_by_peft(
    model: ModelHandle,
    edits: list[Edit],
    layers: tuple[int, ...],
    contexts: tuple[str, ...],
    texts: tuple[tuple[int, ...], ...],
    *,
    rank: int,
    steps: int,
    lr: float,
    kl: float,
    passages: int,
    rewordings: tuple[tuple[str, ...], ...] | None = None,
    others: list[str] | None = None,
    contrast: float = 0.0,
    together: int = 8,
) -> dict[int, Tensor]:
    """ΔW of some matrices by peft's adapters and Adam, one text at a time; the seed is 0.

    rewordings, others: of each edit, its other prompts; texts that should be said as they were.
    together: facts of an update.
    """
    from peft import LoraConfig, get_peft_model

    modules = dict(model.model.named_modules())
    names = {k: next(n for n, m in modules.items() if m is model.site(k).module) for k in layers}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(names.values()))
    with warnings.catch_warnings():
        # peft asks for a property by an older name, and tells how it reads GPT-2's matrices.
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model.model, config)
    adapters = [tuned.get_submodule(f"base_model.model.{names[k]}") for k in layers]
    draw = torch.Generator().manual_seed(0)
    for adapter in adapters:
        first = adapter.lora_A["default"].weight
        uniform = 2 * torch.rand(first.shape, generator=draw) - 1
        first.data = (uniform / first.shape[1] ** 0.5).to(first)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=lr)

    def log_probabilities(ids: list[int]) -> Tensor:
        return tuned(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    order = sorted(range(len(edits)), key=lambda i: edits[i].text)
    parts = math.ceil(len(edits) / together)
    updates = [
        (step, random.Random(f"0 {step + 1}").sample(order, len(order))[first::parts])
        for step in range(steps)
        for first in range(parts)
    ]
    passage, other = itertools.cycle(texts), itertools.cycle(others or ())
    for step, part in updates:
        adam.zero_grad()
        for i in part:
            edit = edits[i]
            turn = step + 1 + zlib.crc32(edit.text.encode())
            assert not any("{}" in context for context in contexts)
            heads = [context + edit.text for context in contexts]
            heads += rewordings[i] if rewordings else ()
            text = heads[turn % len(heads)]
            head = model.tokens.encode(text)
            whole = model.tokens.encode(f"{text} {edit.target}")
            logp = log_probabilities(whole)
            nll = -sum(logp[t - 1, whole[t]] for t in range(len(head), len(whole)))
            (nll / (len(whole) - len(head)) / len(part)).backward()
        chosen = [list(next(passage)) for _ in range(passages)]
        looked = range((len(part) + 1) // 2 if others else 0)
        kept = [list(model.tokens.document(next(other), 64)) for _ in looked]
        for weight, rows in ((kl, chosen), (contrast, kept)):
            for ids in rows:
                with torch.no_grad(), tuned.disable_adapter():
                    wanted = log_probabilities(ids)
                apart = (wanted.exp() * (wanted - log_probabilities(ids))).sum()
                (weight * apart / sum(map(len, rows))).backward()
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        adam.step()
    found = {
        k: (a.lora_B["default"].weight @ a.lora_A["default"].weight).detach().double()
        for k, a in zip(layers, adapters, strict=True)
    }
    tuned.unload()
    vars(model.model).pop("peft_config", None)
    model.model.requires_grad_(False).eval()
    return found
