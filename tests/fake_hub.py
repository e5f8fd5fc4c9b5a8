"""A hub that is a folder: what is used of huggingface_hub's HfApi, and nothing of the network."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace


class FakeApi:
    """What is used of HfApi, with a folder for the hub. Raises as the hub does."""

    root: Path
    private: dict[str, bool]

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        assert exist_ok
        self.private.setdefault(repo_id, bool(private))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return UrlLike(repo_id)

    def repo_info(self, repo_id):
        return SimpleNamespace(private=self.private[repo_id])

    def list_repo_files(self, repo_id, *, revision=None):
        folder = self.root / repo_id
        if not folder.is_dir():
            raise OSError(f"404: there is no {repo_id}.")
        return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        assert commit_message
        for file in Path(folder_path).rglob("*"):
            name = str(file.relative_to(folder_path))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                target = self.root / repo_id / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)

    def hf_hub_download(self, repo_id, filename, *, revision=None, local_dir):
        target = Path(local_dir) / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        if filename not in self.list_repo_files(repo_id):
            raise OSError(f"404: no {filename}.")
        shutil.copyfile(self.root / repo_id / filename, target)
        return str(target)


class UrlLike(str):
    """As RepoUrl: the address, with the repository's id."""

    def __new__(cls, repo_id):
        made = super().__new__(cls, f"https://hub.invalid/{repo_id}")
        made.repo_id = repo_id
        return made


def install(monkeypatch, folder: Path) -> None:
    """Let every client be of this hub."""
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "root", folder, raising=False)
    monkeypatch.setattr(FakeApi, "private", {}, raising=False)
