"""Finds tasks by name, such as glue/sst2, and reads their files from the directories that the user gives."""

from collections.abc import Callable, Sequence

from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks import glue, moleculenet, squad
from mlm_jax.tasks.examples import TaskData

# Suite → the names of its tasks, and a function (name, directory) → TaskData that reads one of them.
SUITES: dict[str, tuple[Sequence[str], Callable[[str, str], TaskData]]] = {
    glue.SUITE: (tuple(glue.SOURCES), glue.read),
    moleculenet.SUITE: (tuple(moleculenet.DATA_SETS), moleculenet.read),
    squad.SUITE: (squad.VERSIONS, squad.read_task),
}


def describe() -> str:
    """The names of all tasks, by suite."""
    return '; '.join(f'{suite}/{{{", ".join(tasks)}}}' for suite, (tasks, _) in SUITES.items())


def split_names(texts: Sequence[str]) -> list[str]:
    """The names of tasks; the name of a suite stands for all of its tasks.

    Raises:
      ConfigError: if a name is unknown.
    """
    names: list[str] = []
    for text in texts:
        suite, _, task = text.partition('/')
        known = SUITES.get(suite, ((), None))[0]
        if suite not in SUITES or (task and task not in known):
            raise ConfigError(f'there is no task {text}; the tasks are {describe()}')
        names += [text] if task else [f'{suite}/{name}' for name in known]
    return list(dict.fromkeys(names))


def directories(texts: Sequence[str]) -> dict[str, str]:
    """Maps suites and tasks to directories, from texts such as 'glue=DIRECTORY' or 'glue/sst2=DIRECTORY'.

    A text without a known name before '=' is the directory of all other tasks, under the key ''.
    """
    found = {}
    for text in texts:
        name, equals, directory = text.partition('=')
        known = equals and name.partition('/')[0] in SUITES
        found[name if known else ''] = directory if known else text
    return found


def read(name: str, where: dict[str, str]) -> TaskData:
    """Reads a task.

    Args:
      name: the name of the task, SUITE/TASK.
      where: the result of `directories`.

    Raises:
      ConfigError: if no directory is given for the task, or its files are missing.
    """
    suite, _, task = name.partition('/')
    directory = where.get(name) or where.get(suite) or where.get('')
    if not directory:
        raise ConfigError(f'no directory is given for {name}: set --data=DIRECTORY or --data={suite}=DIRECTORY')
    return SUITES[suite][1](task, directory)
