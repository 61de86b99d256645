"""Resuming the AI SDK's chats: `useChat({ resume: true })` asks for the answer of a chat by the chat's own id.

https://ai-sdk.dev/docs/ai-sdk-ui/chatbot-resume-streams
"""

from werkzeug.wrappers import Request

from rill import service
from rill.dialects import UI_MESSAGES
from rill.problems import Problem
from rill.server.resume import UNKNOWN, Replay, Resumption, digest_of
from rill.streaming.reader import Connection
from rill.streaming.recording import Recording

NOTHING = Replay(204, {})


class ChatResumption(Resumption):
    """The recorded answers of this worker, also as chats reach them: each chat has its latest one."""

    def start(self, request: Request, asked: service.Request) -> Replay | None:
        """Return the answer once it has started, None if it cannot be recorded; raise Problem."""
        if not asked.prompt.chat:
            return super().start(request, asked)
        name, seconds = asked.client.name, asked.prompt.resume_seconds
        identity = self._identity_of(asked.prompt.chat, name)
        identified = self._asked(request, asked.dialect, name, seconds)._replace(
            identity=identity, joins=False, replaces=True
        )
        replay = self.begin(request, asked, identified)
        return replay and _as_messages(replay)

    def read_chat(self, request: Request, chat: str, name: str, connection: Connection) -> Replay:
        """Return the answer of a chat from its start; nothing if a reader has received all of it."""
        recording = self._find(chat, name)
        if recording is None or recording.was_read:
            return NOTHING
        try:
            replay = self._read(request, recording, name, connection)
        except Problem as problem:
            if problem.name in ("not_found", "not_resumable"):
                return NOTHING
            raise
        recording.note_resumption(0)
        return _as_messages(replay)

    def stop_chat(self, chat: str, name: str) -> None:
        """End the answer of a chat, if it has not ended; raise Problem if there is none."""
        recording = self._find(chat, name)
        if recording is None:
            raise Problem("not_found", UNKNOWN)
        self._recordings.stop(recording)

    def _find(self, chat: str, name: str) -> Recording | None:
        return self._recordings.find_identity(self._identity_of(chat, name))

    def _identity_of(self, chat: str, name: str) -> str:
        return digest_of("chat", name if self._is_private else "", chat)


def _as_messages(replay: Replay) -> Replay:
    return replay._replace(headers={**UI_MESSAGES.headers, **replay.headers})
