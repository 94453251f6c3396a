"""When signals and sockets can be scoped, and when the audit has to say that they cannot."""

import pytest

from claudebox.sandbox import landlock, libc


@pytest.fixture
def kernel(monkeypatch):
    """Have the kernel answer with a version of Landlock, or with an error."""

    def answer_with(answer):
        def call(name, *arguments):
            assert (name, *arguments) == ("syscall", 444, None, 0, 1)
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(libc, "call", call)

    return answer_with


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "bwrap"
    path.write_text("")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", [6, 7, 12])
def test_a_kernel_from_version_6_on_can_scope(kernel, program, version):
    kernel(version)
    assert landlock.obstacle(str(program)) is None


@pytest.mark.parametrize("answer", [1, 5, OSError(38, "ENOSYS"), OSError(95, "EOPNOTSUPP")])
def test_known_limit_an_older_kernel_or_one_without_landlock_cannot(kernel, program, answer):
    kernel(answer)
    assert "this kernel has no Landlock" in landlock.obstacle(str(program))


def test_known_limit_a_set_user_id_bwrap_would_lose_its_rights(kernel, program):
    kernel(6)
    program.chmod(0o4755)
    assert f"{program} gets its rights from its file" in landlock.obstacle(str(program))


def test_a_program_that_is_not_there_is_no_obstacle(kernel):
    kernel(6)
    assert landlock.obstacle("/nonexistent/bwrap") is None
