"""A Hugging Face Hub on this machine: what the package huggingface_hub asks of one, for repositories in memory."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import pytest


class Hub:
    """Repositories, and the requests for them.

    Attributes:
      requests: (method, path, bytes that were sent) of each.
    """

    def __init__(self):
        self.requests = []
        self._revisions = {}
        self._gated = set()

    def put(self, kind: str, name: str, files: dict[str, bytes], revision: str = 'main') -> str:
        """Makes a commit, to which a branch then leads; returns it. `kind` is 'models' or 'datasets'."""
        content = json.dumps([kind, name, {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        for key in (revision, commit):
            self._revisions.setdefault((kind, name), {})[key] = commit, files
        return commit

    def gate(self, name: str) -> None:
        """Refuses a repository until its terms are accepted."""
        self._gated.add(name)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the content for a path without its query."""
        api = re.fullmatch(
            r'/api/(models|datasets)/([^/]+/[^/]+)(?:/(auth-check)|/(revision|tree)/([^/]+)(?:/(.*))?)?', path
        )
        file = re.fullmatch(r'/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path)
        if api:
            kind, name, checked, what, revision, below = api.groups()
            what = checked or what
        elif file:
            kind, name, revision, below = 'datasets' if file[1] else 'models', *file.groups()[1:]
            what = 'file'
        else:
            return 404, {}, b''
        revisions = self._revisions.get((kind, name))
        if revisions is None:
            return 404, {'X-Error-Code': 'RepoNotFound'}, b''
        if name in self._gated and what in ('file', 'auth-check'):
            return 403, {'X-Error-Code': 'GatedRepo'}, b''
        if what == 'auth-check':
            return 200, {}, b''
        revision = urllib.parse.unquote(revision or 'main')
        if revision not in revisions:
            return 404, {'X-Error-Code': 'RevisionNotFound'}, b''
        commit, files = revisions[revision]
        if what == 'file':
            below = urllib.parse.unquote(below)
            if below not in files:
                return 404, {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': commit}, b''
            return 200, {'X-Repo-Commit': commit, 'ETag': f'"{oid(files[below])}"'}, files[below]
        if what == 'tree':
            return 200, {}, json.dumps(list(self._tree(files, below or ''))).encode()
        siblings = [{'rfilename': path} for path in files]
        return 200, {}, json.dumps({'id': name, '_id': name, 'sha': commit, 'siblings': siblings}).encode()

    @staticmethod
    def _tree(files, below):
        directories = set()
        for path, data in files.items():
            if path.startswith(f'{below}/') or not below:
                parts = path.split('/')
                directories.update('/'.join(parts[:end]) for end in range(1, len(parts)))
                yield {'type': 'file', 'oid': oid(data), 'size': len(data), 'path': path}
        for path in directories:
            if path.startswith(below) and path != below:
                yield {'type': 'directory', 'oid': '', 'path': path}


def oid(data: bytes) -> str:
    """The hash by which git knows a content."""
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def _handler(hub: Hub) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_GET(self):
            path, _, query = self.path.partition('?')
            status, headers, data = hub.answer(path)
            if path.count('/tree/') and 'recursive=true' not in query.lower() and status == 200:
                below = urllib.parse.unquote(path.partition('/tree/')[2].partition('/')[2])
                depth = below.count('/') + 1 if below else 0
                data = json.dumps([e for e in json.loads(data) if e['path'].count('/') == depth]).encode()
            if (wanted := re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))) and status == 200:
                start, stop = int(wanted[1]), int(wanted[2]) + 1
                headers['Content-Range'] = f'bytes {start}-{stop - 1}/{len(data)}'
                status, data = 206, data[start:stop]
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            sent = b'' if self.command == 'HEAD' else data
            hub.requests.append((self.command, path, len(sent)))
            self.wfile.write(sent)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    return Handler


@contextlib.contextmanager
def serving(cache):
    """A hub that the package huggingface_hub takes for its own, with its cache in the directory `cache`."""
    from huggingface_hub import constants

    hub = Hub()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
    thread.start()
    endpoint = f'http://127.0.0.1:{server.server_port}'
    template = endpoint + '/{repo_id}/resolve/{revision}/{filename}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HF_ENDPOINT', endpoint)
        patch.setattr(constants, 'ENDPOINT', endpoint)
        patch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        patch.setattr(constants, 'HF_HUB_CACHE', str(cache))
        patch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        yield hub
    server.shutdown()
    server.server_close()
    thread.join()
