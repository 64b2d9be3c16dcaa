"""Tasks by name, such as glue/sst2, wherever their files lie."""

from collections.abc import Callable, Sequence

from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks import glue, moleculenet, squad
from mlm_jax.tasks.examples import TaskData

# Suite → the names of its tasks, and what reads one: (name, directory) → TaskData.
SUITES: dict[str, tuple[Sequence[str], Callable[[str, str], TaskData]]] = {
    glue.SUITE: (tuple(glue.SOURCES), glue.read),
    moleculenet.SUITE: (tuple(moleculenet.DATA_SETS), moleculenet.read),
    squad.SUITE: (squad.VERSIONS, squad.read_task),
}


def split_names(texts: Sequence[str]) -> list[str]:
    """The names of tasks; a suite stands for all of its own.

    Raises:
      ConfigError: for an unknown name.
    """
    names = []
    for text in texts:
        suite, _, task = text.partition('/')
        known = SUITES.get(suite, ((), None))[0]
        if suite not in SUITES or (task and task not in known):
            available = [f'{name}/{{{",".join(tasks)}}}' for name, (tasks, _) in SUITES.items()]
            raise ConfigError(f'there is no task {text}; there are {"; ".join(available)}')
        names += [text] if task else [f'{suite}/{name}' for name in known]
    return list(dict.fromkeys(names))


def directories(texts: Sequence[str]) -> dict[str, str]:
    """Suite or task → directory, from 'glue=DIRECTORY' or 'glue/sst2=DIRECTORY'; 'DIRECTORY' alone is for all, ''."""
    found = {}
    for text in texts:
        name, equals, directory = text.partition('=')
        known = equals and name.partition('/')[0] in SUITES
        found[name if known else ''] = directory if known else text
    return found


def read(name: str, where: dict[str, str]) -> TaskData:
    """Reads a task.

    Args:
      name: SUITE/TASK.
      where: of `directories`.

    Raises:
      ConfigError: when nothing says where it is, or it is not there.
    """
    suite, _, task = name.partition('/')
    directory = where.get(name) or where.get(suite) or where.get('')
    if not directory:
        raise ConfigError(f'nothing says where {name} lies: give --data=DIRECTORY, or --data={suite}=DIRECTORY')
    return SUITES[suite][1](task, directory)
