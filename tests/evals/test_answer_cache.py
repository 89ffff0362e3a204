"""The cache of model answers: equal questions are asked once, per epoch; answers survive the process."""

from __future__ import annotations

import threading

import pytest
from langchain_core.globals import get_llm_cache
from langchain_core.messages import AIMessage, HumanMessage

from agent.backends import chat_model
from evals.answer_cache import AnswerCache, cached_answers, in_epoch
from models.errors import RunError
from tests.agent.loopback import LoopbackServer, say


def ask(server, text="What do you see?", **fields):
    return chat_model(server.backend(**fields)).invoke([HumanMessage(text)])


def test_an_equal_question_is_sent_once_and_answered_alike(tmp_path):
    with LoopbackServer(lambda request: say(f"answer {request.number}")) as server:
        with cached_answers(tmp_path / "answers.sqlite"):
            first, second = ask(server), ask(server)
            assert len(server.requests) == 1
            assert second.content == first.content == "answer 0"
            assert second.usage_metadata["input_tokens"] == first.usage_metadata["input_tokens"]
            assert second.response_metadata["model_name"] == first.response_metadata["model_name"]
            ask(server, "Something else?")
            ask(server, model="another")
            assert len(server.requests) == 3
        with cached_answers(tmp_path / "answers.sqlite"):  # as a new process would
            assert ask(server).content == "answer 0"
        assert len(server.requests) == 3
        assert ask(server).content == "answer 3"  # outside: no cache
    assert get_llm_cache() is None


def test_another_epoch_asks_again_also_in_threads(tmp_path):
    with (
        LoopbackServer(lambda request: say(f"answer {request.number}")) as server,
        cached_answers(tmp_path / "x.sqlite"),
    ):
        answers = {}

        def work(epoch):
            with in_epoch(epoch):
                answers[epoch] = ask(server).content

        for epoch in (1, 2, 1, 2):
            thread = threading.Thread(target=work, args=[epoch])
            thread.start()
            thread.join()
        assert len(server.requests) == 2
    assert answers == {1: "answer 0", 2: "answer 1"}


def test_no_file_means_no_cache():
    with cached_answers(None):
        assert get_llm_cache() is None


def test_questions_are_not_kept_and_a_file_that_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "deep" / "answers.sqlite"
    cache = AnswerCache(path)
    from langchain_core.outputs import ChatGeneration

    cache.update("a secret question", "model", [ChatGeneration(message=AIMessage("an answer"))])
    assert b"secret question" not in path.read_bytes()
    assert cache.lookup("a secret question", "model")[0].message.content == "an answer"
    assert cache.lookup("another", "model") is None
    cache.clear()
    assert cache.lookup("a secret question", "model") is None
    (tmp_path / "text").write_text("no database, and longer than the header of one would be " * 20)
    with pytest.raises(RunError, match="can't be used"):
        AnswerCache(tmp_path / "text")
