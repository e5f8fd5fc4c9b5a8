"""The studio: facts are typed, looked at, undone and exported, and nothing of it is ever lost."""

import json
import threading
import time
import warnings
from contextlib import contextmanager

import httpx2
import pytest
import torch

from pico import pico
from retcon.cli.choices import EditChoice, ModelChoice
from retcon.cli.commands.studio import loading
from retcon.edits import Edit
from retcon.errors import InvalidEdit, InvalidSetting, RetconWarning, StorageError, UnknownName
from retcon.locking import locked
from retcon.patch.ledger import Ledger
from retcon.progress import silent
from retcon.run.asked import ask
from retcon.run.close_up import own_answers
from retcon.run.compare import Said
from retcon.scoring.exact_match import top_answers
from retcon.studio.app import application
from retcon.studio.bench import Bench, Editing
from retcon.studio.drawing import percent
from retcon.studio.editing import case_of, edit_routes
from retcon.studio.jobs import JobQueue
from retcon.studio.server import address, bound, open_to_others, served
from retcon.studio.stacking import stack_routes
from test_data import RECORD
from test_methods import FAST

FRANCE = {"prompt": "The capital city of {France} is", "target": "Rome"}
CURIE = {"prompt": "{Marie Curie} was born in the city of", "target": "London"}
HOW = Editing(method="emmet", layers=(1,), settings=FAST)


def bench_in(folder, model=None):
    """A bench of a pico model; its ledger is in a folder."""
    handle = model or pico()
    return Bench("./model", lambda progress: handle, folder / "ledger", who="ann", editing=HOW)


@contextmanager
def open_studio(bench):
    """A browser's view of a bench that is served: a client that asks it."""
    app = application([*edit_routes(bench), *stack_routes(bench)], "/edit")
    try:
        with bound("127.0.0.1", None) as listening, served(app, listening):
            url = address(listening)
            with httpx2.Client(base_url=url, headers={"origin": url}, timeout=60) as client:
                yield client
    finally:
        bench.jobs.end()


@pytest.fixture
def bench(tmp_path):
    made = bench_in(tmp_path)
    yield made
    made.jobs.end()


@pytest.fixture
def client(bench):
    with open_studio(bench) as made:
        yield made


def ended(client, answer):
    """A job that has ended."""
    assert answer.status_code == 202, answer.text
    number = answer.json()["job"]
    for _ in range(6000):
        job = client.get(f"/jobs/{number}").json()
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def write(client, fields):
    job = ended(client, client.post("/edits", json=fields))
    assert job["state"] == "done", job["problem"]
    return job["answer"]["href"]


def test_a_fact_is_looked_at_written_undone_and_switched_on_again(client, bench):
    looked = ended(client, client.post("/looks", json=FRANCE))
    html = looked["answer"]["html"]
    assert 'class="subject lookup">' in html and "Now" in html and not bench.begun
    more = {"ways": "France has the capital", "stays": "Marie Curie was born in", "note": "checked"}
    assert write(client, {**FRANCE, **more}) == "/edits/1"
    page = client.get("/edits/1").text
    assert "Before" in page and "After" in page and "France has the capital" in page
    assert "switched on" in page and "Beside it" in page
    (entry,) = bench.ledger.entries()
    assert (entry.note, entry.who, [r.id for r in entry.about.edits]) == (
        "checked",
        "ann",
        ["france"],
    )
    assert entry.about.edits[0].verdict is not None
    stack = client.get("/stack").text
    assert "1 fact in the model" in stack and 'aria-checked="true"' in stack
    assert 'aria-current="page">Stack<' in stack and 'aria-current="page">Edit<' in page
    answer = client.post("/stack/off", data={"fact": "1:france", "back": "/edits/1"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/edits/1")
    assert bench.ledger.entries() == () and "switched off" in client.get("/edits/1").text
    assert 'aria-checked="false"' in client.get("/stack").text
    client.post("/stack/on", data={"fact": "1:france"})
    client.post("/stack/note", data={"entry": "1", "note": "was right"})
    assert bench.ledger.entries()[0].note == "was right"
    client.post("/stack/back", data={"to": "0"})
    assert bench.ledger.entries() == ()
    earlier = client.get("/stack?at=1").text
    assert "1 fact in the model" in earlier and 'role="switch"' not in earlier
    assert [event.number for event in bench.ledger.history] == [1, 2, 3, 4, 5]


def test_facts_that_are_there_are_named_where_a_new_one_disturbs_them(client, bench):
    write(client, FRANCE)
    looked = ended(client, client.post("/looks", json=CURIE))["answer"]["html"]
    assert 'id="foresight"' in looked
    html = ended(client, client.post("/foresight", json=CURIE))["answer"]["html"]
    assert "Predicted from the keys" in html and "The capital city of France is Rome" in html
    assert write(client, {**FRANCE, "target": "Madrid"}) == "/edits/2"
    # The new one is in before the old one goes, so that a process that is killed loses neither.
    assert [type(event.action).__name__ for event in bench.ledger.history] == [
        "Added", "Added", "TakenBack",
    ]  # fmt: skip
    (entry,) = bench.ledger.entries()
    assert [(r.id, r.target) for r in entry.about.edits] == [("france-2", "Madrid")]
    assert [entry.number for entry in bench.ledger.outside()] == [1]


def test_a_file_of_facts_is_one_entry_and_each_can_be_looked_at(client, bench):
    lines = [
        {"id": "f", "prompt": FRANCE["prompt"], "target": "Rome", "target_old": "Paris"},
        {"id": "c", "prompt": CURIE["prompt"], "target": "London", "paraphrases": ["Curie is of"]},
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    job = ended(client, client.post("/files?name=facts.jsonl", content=content))
    assert job["answer"]["href"] == "/edits/1", job["problem"]
    page = client.get("/edits/1").text
    assert "Entry 1: 2 facts" in page and "asked for" in page and "ES" in page
    assert "Nobody has looked" in client.get("/edits/1/2").text
    ended(client, client.post("/edits/1/2"))
    assert "Curie is of" in client.get("/edits/1/2").text
    client.post("/stack/off", data={"fact": "1:f"})
    assert [r.id for e in bench.ledger.entries() for r in e.about.edits] == ["c"]
    for listed in ("/edit", "/stack"):  # the links stay those of the places in the file
        assert f'href="/edits/1/2">{CURIE["prompt"].replace("{", "").replace("}", "")} <b>' in (
            client.get(listed).text
        )
    broken = client.post("/files?name=facts.jsonl", content=b'{"prompt": 3}', headers=JSON)
    assert broken.status_code == 400 and "facts.jsonl" in broken.json()["problem"]


JSON = {"accept": "application/json"}


def test_facts_are_solved_together_and_exported(client, bench):
    write(client, FRANCE)
    write(client, CURIE)
    job = ended(client, client.post("/stack/together"))
    assert job["answer"]["href"] == "/edits/3", job["problem"]
    (entry,) = bench.ledger.entries()
    assert len(entry.about.edits) == 2 and entry.note == "all facts, solved together"
    stack = client.get("/stack/patch.safetensors").content
    assert len(stack) > 1000
    for form, name, said in (
        ("peft", "../up", "no name for a folder"),
        ("onnx", "a", "Unknown export form"),
    ):
        answer = client.post("/exports", json={"form": form, "name": name}, headers=JSON)
        assert answer.status_code == 400 and said in answer.json()["problem"]


# Reading warns twice: in the terminal at once, and in the job, which tells the page.
@pytest.mark.filterwarnings("ignore::retcon.errors.RetconWarning")
def test_a_file_may_have_any_name_and_what_is_ignored_of_it_is_told(client):
    for name in ("..", "", "a" * 400, "facts/\u2028\0.jsonl", "nonsense.gz"):
        answer = client.post("/files", params={"name": name}, content=b"\xff\0", headers=JSON)
        assert answer.status_code == 400 and "Traceback" not in answer.text
        said = answer.json()["problem"]
        assert "/tmp" not in said and (name.rpartition("/")[2] or "facts.jsonl")[:9] in said
    record = {**RECORD, "colour": "x"}
    job = ended(client, client.post("/files?name=f.json", content=json.dumps([record]).encode()))
    assert job["state"] == "done" and "f.json" in job["warned"][0] and "colour" in job["warned"][0]
    assert "/tmp" not in job["warned"][0]
    large = client.post("/files?name=f.jsonl", content=b" " * (2**26 + 1), headers=JSON)
    assert "larger than 64 MiB" in large.json()["problem"]


def test_a_ledger_that_another_program_is_changing_is_told_of(client, bench):
    write(client, FRANCE)
    bench.ledger = Ledger(bench.ledger.folder, patience=0.1)
    with locked(bench.ledger.folder / ".lock"):
        page = client.post("/stack/off", data={"entry": "1"})
        assert page.status_code == 400 and "is being changed by process" in page.text
        job = ended(client, client.post("/edits", json=CURIE))
        assert job["state"] == "failed" and "Try again" in job["problem"]
    assert client.post("/stack/off", data={"entry": "1"}).status_code == 303


def test_whether_a_fact_can_be_kept_is_known_before_it_is_written(client, bench, monkeypatch):
    def never(*args, **others):
        raise AssertionError("the work was begun")

    monkeypatch.setattr("retcon.studio.bench.edit", never)
    bench.ledger.folder.mkdir()
    (bench.ledger.folder / "letter.txt").write_text("dear")
    job = ended(client, client.post("/edits", json=FRANCE))
    assert job["state"] == "failed" and "holds other files (letter.txt)" in job["problem"]
    bench.ledger = Ledger(bench.ledger.folder / "letter.txt")
    job = ended(client, client.post("/edits", json=FRANCE))
    assert "is a file" in job["problem"]


def test_a_switch_does_not_spoil_what_is_being_written(client, bench, monkeypatch):
    write(client, FRANCE)
    write(client, CURIE)

    def switching(*args, **others):
        client.post("/stack/off", data={"entry": "2"})
        return ask(*args, **others)

    monkeypatch.setattr("retcon.studio.bench.ask", switching)
    write(client, {**FRANCE, "target": "Madrid"})
    (entry,) = bench.ledger.entries()
    assert [r.target for r in entry.about.edits] == ["Madrid"]
    full = StorageError("There is no room.")
    monkeypatch.setattr("retcon.studio.bench.check_writable", raising(full))
    job = ended(client, client.post("/edits", json=FRANCE))
    assert job["problem"] == str(full) and bench.ledger.entries() == (entry,)


def raising(error):
    def fail(*args, room):
        if room > 2**20:  # what is asked of the patch, and not before the work
            raise error

    return fail


def test_a_fact_that_was_written_anew_does_not_stand_twice(client, bench):
    write(client, FRANCE)
    write(client, {**FRANCE, "target": "Madrid"})
    for form in ({"fact": "1:france"}, {"entry": "1"}):
        answer = client.post("/stack/on", data=form, headers=JSON)
        assert answer.status_code == 400 and "Switch entry 2 off first" in answer.json()["problem"]
    client.post("/stack/off", data={"entry": "2"})
    client.post("/stack/on", data={"entry": "1"})
    (entry,) = bench.ledger.entries()
    assert [r.target for r in entry.about.edits] == ["Rome"]


def test_settings_that_do_not_fit_are_told_before_a_fact_is_typed(tmp_path):
    fits = bench_in(tmp_path)
    started = Started(fits.start().number)
    with open_studio(fits) as client:
        assert ended(client, started)["state"] == "done" and fits.trouble == ""
    for wrong, said in (
        ({"settings": {"stepz": 3}}, "stepz"),
        ({"method": "in_context", "settings": {}}, "no weight"),
    ):
        asked = bench_in(tmp_path)
        asked.editing = Editing(**{**HOW, **wrong})
        job = asked.start()
        with open_studio(asked) as client:
            assert said in ended(client, Started(job.number))["problem"]
            assert said in next(events(client))["trouble"]


def test_what_was_foreseen_of_a_fact_stays_when_it_is_looked_at_again(client, bench):
    write(client, FRANCE)
    write(client, {**FRANCE, "prompt": "The old capital of {France} is"})
    foreseen = bench.shelf.fact(2, 1).foresight
    assert foreseen.facts
    bench.closer(2, 1, silent)
    assert bench.shelf.fact(2, 1).foresight == foreseen


def test_a_page_that_is_not_there_and_a_mistake_of_retcon_s_own_are_told(
    client, bench, monkeypatch
):
    for answer, status in ((client.get("/none"), 404), (client.get("/looks"), 405)):
        assert answer.status_code == status and "has no page" in answer.text
        assert "default-src" in answer.headers["content-security-policy"]
    monkeypatch.setattr(type(bench), "begun", property(lambda bench: 1 / 0))
    answer = client.get("/stack", headers={"referer": "http://evil.example/"})
    assert answer.status_code == 500 and "mistake of Retcon&#39;s own" in answer.text
    assert "default-src" in answer.headers["content-security-policy"]
    assert "evil.example" not in answer.text


def test_what_is_wrong_is_a_sentence(client):
    answer = client.post("/edits", json={"prompt": "No braces", "target": "x"}, headers=JSON)
    assert answer.status_code == 400 and "in braces" in answer.json()["problem"]
    page = client.post("/stack/off", data={"fact": "9:none"})
    assert page.status_code == 400 and "could not be done" in page.text
    assert client.get("/edits/7").status_code == 400
    assert (
        client.get("/jobs/99", headers=JSON)
        .json()["problem"]
        .startswith("The studio was started anew")
    )


def test_other_sites_are_kept_out_and_pages_load_nothing_from_elsewhere(client, bench):
    for page in ("/edit", "/stack", "/studio.css", "/studio.js"):
        answer = client.get(page)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http://" not in answer.text.replace("http://www.w3.org", "")
        assert "https://" not in answer.text and "style=" not in answer.text
    assert client.get("/edit", headers={"host": "evil.example:8765"}).status_code == 403
    for origin in ("http://evil.example", "null", "", "http://[x", "x:1"):
        headers = {"origin": origin}
        assert client.post("/stack/back", data={"to": "0"}, headers=headers).status_code == 403
    answer = client.post("/stack/back", data={"to": "0", "back": "//evil.example"})
    assert answer.headers.get("location", "/stack") == "/stack"


def test_a_ledger_of_another_model_is_told_of(tmp_path):
    first = bench_in(tmp_path)
    with open_studio(first) as client:
        write(client, FRANCE)
    other = bench_in(tmp_path, pico(seed=1))
    job = other.start()
    with open_studio(other) as client:
        assert "This patch was made for" in ended(client, Started(job.number))["problem"]
        assert "This patch was made for" in next(events(client))["trouble"]
        assert "France" in client.get("/stack").text


def test_texts_are_shown_as_texts(client):
    fact = {"prompt": "<b>In {Paris}</b> is", "target": "<script>x</script>", "ways": "<i>a</i>"}
    looked = ended(client, client.post("/looks", json=fact))["answer"]["html"]
    page = client.get(write(client, fact)).text + client.get("/stack").text
    query = client.get("/edit", params={"prompt": '"><script>x</script>'}).text
    for text in (looked, page, query):
        assert "<script>x" not in text and "<b>In" not in text and "<i>a" not in text
    assert "&lt;script&gt;x" in page


def events(client):
    """What the studio tells its pages of the jobs."""
    with client.stream("GET", "/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_nothing_is_lost_with_the_process(tmp_path):
    first = bench_in(tmp_path)
    with open_studio(first) as client:
        write(client, FRANCE)
        before = client.get("/edits/1").text
    second = bench_in(tmp_path)
    with open_studio(second) as client:
        assert client.get("/edits/1").text == before
        assert "1 fact in the model" in client.get("/stack").text


def test_two_tabs_write_one_after_the_other(client, bench):
    model = bench.model(lambda *_: None)
    untouched = model.site(1).weight.clone()
    numbers = [client.post("/edits", json=one).json()["job"] for one in (FRANCE, CURIE)]
    states = [ended(client, Started(number))["state"] for number in numbers]
    assert states == ["done", "done"]
    assert [r.id for e in bench.ledger.entries() for r in e.about.edits] == [
        "france",
        "marie-curie",
    ]
    assert torch.equal(model.site(1).weight, untouched)


class Started:
    """An answer that names a job."""

    status_code = 202

    def __init__(self, number):
        self.number = number

    def json(self):
        return {"job": self.number}


def test_a_job_that_is_cancelled_leaves_nothing(client, bench, monkeypatch):
    going, on = threading.Event(), threading.Event()

    def slow(*args, progress, **others):
        for step in range(1000):
            progress("optimising targets, in steps", step, 1000)
            going.set()
            on.wait(0.01)

    monkeypatch.setattr("retcon.studio.bench.edit", slow)
    running = client.post("/edits", json=FRANCE).json()["job"]
    waiting = client.post("/edits", json=CURIE).json()["job"]
    assert going.wait(30)
    jobs = next(events(client))["jobs"]
    assert [(job["job"], job["state"]) for job in jobs] == [
        (running, "running"),
        (waiting, "waiting"),
    ]
    for number in (waiting, running):
        client.post(f"/jobs/{number}/cancel")
        assert ended(client, Started(number))["state"] == "cancelled"
    assert not bench.begun and bench.model(lambda *_: None).as_loaded


def test_quick_jobs_go_first_and_a_later_one_takes_the_place_of_an_earlier():
    jobs, order, hold = JobQueue(), [], threading.Event()
    first = jobs.add("slow", lambda progress: hold.wait(10) and {})
    time.sleep(0.05)
    work = [lambda progress, n=n: order.append(n) or {} for n in range(4)]
    jobs.add("slow", work[0])
    early = jobs.add("look", work[1], quick=True, tab="a")
    jobs.add("look", work[2], quick=True, tab="a")
    last = jobs.add("look", work[3], quick=True, tab="b")
    hold.set()
    while not (last.ended and first.ended and order[-1:] == [0]):
        time.sleep(0.01)
    jobs.end()
    assert early.state == "cancelled" and order == [2, 3, 0]


def test_what_was_warned_of_is_told_of_a_job_that_fails():
    def work(progress):
        warnings.warn("These facts have one key.", RetconWarning, stacklevel=1)
        raise InvalidEdit("No.")

    jobs = JobQueue()
    job = jobs.add("write", work)
    while not job.ended:
        time.sleep(0.01)
    jobs.end()
    assert (job.state, job.problem, job.warned) == ("failed", "No.", ("These facts have one key.",))


def test_a_mistake_of_a_model_does_not_end_the_worker(caplog):
    jobs = JobQueue()

    def full(progress):
        raise MemoryError

    large = jobs.add("large", full)
    bad = jobs.add("bad", lambda progress: dict[str, int]()["x"])
    good = jobs.add("good", lambda progress: {"x": 1})
    while not good.ended:
        time.sleep(0.01)
    jobs.end()
    assert bad.state == "failed" and "mistake of Retcon's own" in bad.problem
    assert large.state == "failed" and "not enough memory" in large.problem
    assert good.answer == {"x": 1} and "KeyError" in caplog.text


def test_a_form_becomes_a_case():
    case = case_of({**FRANCE, "ways": "a\n\n b ", "stays": "c", "old": " Paris ", "question": "?"})
    assert case.edit == Edit.parse(**FRANCE, id="france", target_old="Paris")
    assert (case.paraphrases, case.neighbours, case.questions) == (("a", "b"), ("c",), ("?",))


def test_the_old_answer_is_a_word_and_not_a_part_of_one(monkeypatch):
    texts = ["Brest, France, and", "“Rome”.", "", "長" * 50]
    spoken = lambda model, prompts, *_: [Said(text, ()) for text in texts]  # noqa: E731
    monkeypatch.setattr("retcon.run.close_up.said", spoken)
    model, prompts = pico(), ["Paris is in", "Paris is in", "Rome is in", "Tokyo is in"]
    *words, none, long = own_answers(model, prompts)
    assert words == ["Brest", "Rome"]
    tops = [top_answers(model, prompt, 1)[0].text for prompt in prompts[2:]]
    assert [none, long] == tops


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.0004, "< 0.1 %"), (0.0312, "3.1 %"), (0.0996, "10 %"), (-0.5, "−50 %")],
)
def test_a_share_is_told_in_per_cent(share, text):
    assert percent(share) == text


def test_an_address_of_this_machine(monkeypatch):
    with bound("127.0.0.1", None) as first:
        monkeypatch.setattr("retcon.studio.server.PORT", first.getsockname()[1])
        with bound("127.0.0.1", None) as second:
            assert address(first) != address(second) and not open_to_others(second)
        with pytest.raises(InvalidSetting, match="Give another --port"):
            bound("127.0.0.1", first.getsockname()[1])
    for host in ("256.0.0.1", "203.0.113.1"):  # no address, and one that no machine has
        with pytest.raises(InvalidSetting, match="address of this machine"):
            bound(host, None)


def test_the_command_says_what_it_cannot_begin_with(folder, retcon, capsys):
    """The address is said first, before all that takes its time."""
    (folder / "letters").mkdir()
    (folder / "letters" / "letter.txt").write_text("dear")
    code, out, err = retcon("studio", "./model", "--ledger", "letters")
    assert code == 2 and "holds other files (letter.txt)" in err
    assert out.startswith("Retcon studio: http://127.0.0.1:")
    with pytest.raises(UnknownName, match="Did you mean 'memit'"):
        load = loading(
            ModelChoice(name="./model"), EditChoice.parse("memmit", None, None, None, None)
        )
        load(silent)
    assert "Did you mean 'memit'" in capsys.readouterr().err  # and not on the page alone
    code, _, err = retcon("studio", "./model", "--ledger", "letters/letter.txt")
    assert code == 2 and "is a file" in err
    code, out, err = retcon("studio", "./model", "--layer", "1", "--layers", "2")
    assert (code, out) == (2, "") and "not both" in err


@pytest.mark.real
@pytest.mark.long
def test_a_real_model_changes_its_mind_and_changes_it_back(tmp_path, smollm2, data):
    fact = {"prompt": "The capital of {France} is", "target": "Rome"}
    bench = bench_in(tmp_path, smollm2)
    corpus = str(data / "corpus" / "wikitext2_valid.txt.gz")
    bench.editing = Editing(settings={"corpus": corpus, "corpus_tokens": 4000})
    with open_studio(bench) as client:
        looked = ended(client, client.post("/looks", json=fact))["answer"]["html"]
        assert "The capital of France is</span> Paris" in looked
        write(client, fact)
        (row, *_) = bench.shelf.fact(1, 1).rows
        assert (row.before.top[0].text, row.after.top[0].text) == ("Paris", "Rome")
        assert bench.ledger.entries()[0].about.edits[0].verdict != "not said"
        client.post("/stack/off", data={"entry": "1"})
        assert ended(client, client.post("/looks", json=fact))["answer"]["html"] == looked
