"""The trained policy that the server has for its devices: from the settings or the API, signed, the newest version."""

from __future__ import annotations

import re
from pathlib import Path

from streamsplit.errors import ConfigError, CutError
from streamsplit.server.checkpoint import write_atomic
from streamsplit.server.settings import PolicyPushSettings
from streamsplit.splitting.policy_file import policy_from_bytes
from streamsplit.splitting.policy_push import sign_policy
from streamsplit.wire.messages import Hello, PolicyPush

_NAME = re.compile(r"policy-v(\d{1,10})\.npz")


class PolicyShelf:
    """Holds one policy at a time; what came by the API is kept in `folder` and found again after a restart."""

    def __init__(self, settings: PolicyPushSettings, folder: Path, encoder: str) -> None:
        self.current: PolicyPush | None = None
        self._settings, self._folder, self._encoder = settings, folder, encoder

    @property
    def version(self) -> int:
        """Of the policy that is offered; 0 for none."""
        return self.current.version if self.current is not None else 0

    def load(self) -> None:
        """The policy of the settings, or a newer one that came by the API; raises ConfigError for one that cannot be
        offered."""
        settings = self._settings
        if settings.file:
            self.current = check_policy_settings(settings, self._encoder)
        kept = sorted((int(m[1]), path) for path in self._folder.glob("policy-v*.npz") if (m := _NAME.match(path.name)))
        if kept and settings.secret and kept[-1][0] > self.version:
            version, path = kept[-1]
            try:
                self.current = self._signed(version, path.read_bytes(), str(path))
            except (OSError, CutError) as error:
                raise ConfigError(f"{path}: kept policy cannot be offered ({error}); delete it") from error

    def put(self, version: int, data: bytes) -> PolicyPush:
        """Takes a newer policy; raises CutError for one that devices would refuse, CheckpointError for a full disk."""
        if version <= self.version:
            raise CutError(f"got policy version {version}, expected one newer than v{self.version}, which is offered")
        message = self._signed(version, data, "the policy")
        write_atomic(self._folder / f"policy-v{version}.npz", data)
        self.current = message
        for path in self._folder.glob("policy-v*.npz"):
            if path.name != f"policy-v{version}.npz":
                path.unlink(missing_ok=True)
        return message

    def offer(self, hello: Hello | None, told: int) -> PolicyPush | None:
        """What to send to a device that said `hello` and was `told` up to that version already; None: nothing."""
        message = self.current
        if message is None or hello is None or not hello.want_policy or hello.encoder != message.encoder:
            return None
        return message if message.version > max(told, hello.policy_version) else None

    def _signed(self, version: int, data: bytes, source: str) -> PolicyPush:
        return _signed(self._settings.secret, version, data, self._encoder, source)


def check_policy_settings(settings: PolicyPushSettings, encoder: str) -> PolicyPush:
    """The signed policy that the settings describe; raises ConfigError for a file that devices would refuse."""
    try:
        data = Path(settings.file).read_bytes()
    except OSError as error:
        raise ConfigError(f"'policy.file': {settings.file} cannot be read ({error.strerror or error})") from error
    try:
        return _signed(settings.secret, settings.version, data, encoder, settings.file)
    except CutError as error:
        raise ConfigError(f"'policy.file': {error}") from None


def _signed(key: str, version: int, data: bytes, encoder: str, source: str) -> PolicyPush:
    pushed = sign_policy(key, version, data)
    file = policy_from_bytes(data, source)
    if file.encoder != encoder:
        raise CutError(f"{source}: got a policy for encoder '{file.encoder}', expected '{encoder}' as on this server")
    return PolicyPush(version=version, encoder=encoder, data=data, signature=pushed.signature)
