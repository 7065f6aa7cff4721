"""The policy in force on a device: its owner's, the server's order, or one that the server pushed; never none."""

from __future__ import annotations

from collections.abc import Callable

from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.snapshot import load_snapshot, save_snapshot
from streamsplit.errors import CheckpointError, CutError
from streamsplit.splitting.decision import Policy
from streamsplit.splitting.policy import LEARNED_POLICIES, PolicySettings, fallbacks_of, usable_policy
from streamsplit.splitting.policy_file import PolicyFile
from streamsplit.splitting.policy_push import PushedPolicy, open_policy, pushed_from_bytes
from streamsplit.splitting.table import CutTable
from streamsplit.wire.messages import PolicyPush


class DevicePolicy:
    """Makes the device's policy and replaces it; changes happen in the worker thread.

    A trained policy that cannot be used (missing, damaged, of another table) is reported by `problem`, and the
    heuristic decides in its place; with `strict`, for a file that somebody named on the command line, it is an error
    instead. A policy pushed by the server comes before the file in the settings, unless `strict`. Raises CutError for a
    fixed cut that the table lacks or the constraints forbid, and for constraints that leave nothing.
    """

    def __init__(
        self, settings: EdgeSettings, table: CutTable, problem: Callable[[str], None], *, strict: bool = False
    ) -> None:
        agent = settings.splitting.agent
        self.version = 0  # of the pushed policy that is held
        self.key = agent.key
        self.wants = bool(self.key) and agent.learned and settings.splitting.enabled and not strict
        self._settings: PolicySettings = settings.policy
        self._path = settings.policy_path
        self._table, self._problem, self._strict = table, problem, strict
        self._file: PolicyFile | None = None
        self._gone = 0  # fallbacks of policies that were replaced
        if agent.learned and settings.splitting.enabled and not strict:
            self._file = self._kept()
        self.policy: Policy  # in force
        self.name: str  # of it, in words
        self._own()

    @property
    def fallbacks(self) -> int:
        """Decisions made in the policy's place since the start."""
        return self._gone + fallbacks_of(self.policy)

    def own(self) -> Policy:
        """Back to the device's own policy."""
        self._gone = self.fallbacks
        self._own()
        return self.policy

    def order(self, name: str, cut: str) -> Policy:
        """The server's order: another policy by name, or a fixed cut; raises CutError for what cannot be followed."""
        settings = self._settings.replace(name=name, cut=cut or self._settings.cut)
        policy, problem = usable_policy(settings, self._table, self._file)
        if problem:
            raise CutError(problem)
        self._gone = self.fallbacks
        self.policy, self.name = policy, f"{name}, by the server's order"
        return self.policy

    def push(self, message: PolicyPush, *, ordered: bool) -> None:
        """Takes a policy from the server, keeps it, and follows it unless the server's order stands (`ordered`).

        Raises CutError when it must not be used; nothing has changed then.
        """
        if self._settings.name not in LEARNED_POLICIES or self._strict:
            raise CutError(f"policy '{self._settings.name}' was set here by the owner and takes no pushed one")
        if message.encoder != self._table.encoder:
            raise CutError(
                f"the pushed policy was trained for another cut table: got encoder {message.encoder}, "
                f"expected {self._table.encoder}"
            )
        pushed = PushedPolicy(message.version, message.data, message.signature)
        self._file = open_policy(pushed, key=self.key, held_version=self.version, table=self._table)
        self.version = pushed.version
        try:
            save_snapshot(self._path, pushed.to_bytes())
        except CheckpointError as error:
            self._problem(f"policy v{pushed.version} is in use but not kept: {error}")
        if not ordered:
            self.own()

    def _own(self) -> None:
        self.policy, problem = usable_policy(self._settings, self._table, self._file, strict=self._strict)
        name = self._settings.name
        if problem:
            self._problem(problem)
            name = f"heuristic, {name} is not usable"
        elif self._file is not None:
            name = f"{name} v{self._file.version}, pushed"
        self.name = name

    def _kept(self) -> PolicyFile | None:
        """The policy that was pushed before the last restart; what is wrong with it is said, and it is left out."""
        try:
            data = load_snapshot(self._path)
            if data is None:
                return None
            pushed = pushed_from_bytes(data, str(self._path))
            file = open_policy(pushed, key=self.key, held_version=0, table=self._table)
        except (CheckpointError, CutError) as error:
            self._problem(f"the pushed policy that is kept is not used: {error}")
            return None
        self.version = pushed.version
        return file
