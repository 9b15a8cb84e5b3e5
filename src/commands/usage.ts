import { version } from '../version.ts'

/** How one command is called: what `postern COMMAND --help` shows. */
interface Usage {
  /** What follows `postern`. */
  readonly call: string
  /** What it does, in a line of the overview. */
  readonly summary: string
  /** What else one should know before calling it. */
  readonly about?: string
  /** Words and options, each with its meaning and default. */
  readonly takes?: Readonly<Record<string, string>>
  readonly exits: Readonly<Record<string, string>>
  readonly examples: readonly string[]
}

const FILE = {
  FILE: 'the configuration (default: POSTERN_CONFIG_STRING, then POSTERN_CONFIG, then\nconfig/postern.yaml)'
}
const CONFIG = { '-c, --config FILE': 'the configuration, instead of what POSTERN_CONFIG says' }
const HELP = { '-h, --help': 'this text' }
const WRONG = { 2: 'wrong usage' }
const ASKS = `It calls the status API at POSTERN_STATUS_LISTEN (default: 127.0.0.1:8007), so give it the
environment the gateway runs with.`
const FINGERPRINT = `A fingerprint tells whether two values are the same: within one output, or
everywhere under POSTERN_FINGERPRINT_KEY.`
const JSON_RESULT = 'the whole result as one JSON document on standard output (default: text)'

/** Every command by its name, in the order of the overview. */
export const usages: Readonly<Record<string, Usage>> = {
  start: {
    call: 'start [FILE]',
    summary: 'serve until SIGTERM or SIGINT',
    about: `Every reference is read first; what lacks its secret stops the start, unless
POSTERN_VAULT_START=degraded. SIGHUP, or a change of the file, loads it again.`,
    takes: { ...FILE, ...CONFIG },
    exits: {
      0: 'stopped, requests in flight ended',
      1: 'the configuration, a secret or an address cannot be had; all that is wrong is listed',
      ...WRONG,
      143: 'stopped by SIGTERM before it served (130 by SIGINT)'
    },
    examples: [
      'postern start',
      'POSTERN_PROXY_LISTEN=127.0.0.1:9000 POSTERN_WORKERS=1 postern start kong.yml'
    ]
  },
  check: {
    call: 'check [FILE] [--resolve] [--json]',
    summary: 'validate environment and file offline; --resolve asks the vaults too',
    about: `Offline no vault is asked and no credential needed. With --resolve it shows each reference, where
it stands, its vault, version, age, state and fingerprint, never its value.
${FINGERPRINT}`,
    takes: {
      ...FILE,
      '--resolve': 'read every reference and check each value against its field (default: offline)',
      '--json': JSON_RESULT,
      ...CONFIG
    },
    exits: {
      0: 'valid, and with --resolve every reference has a value that fits',
      1: 'it is not; all that is wrong is listed',
      ...WRONG
    },
    examples: [
      'postern check config/postern.yaml',
      'postern check --resolve',
      `postern check --resolve --json | jq '.references[] | select(.state != "ok")'`
    ]
  },
  diff: {
    call: 'diff OLD NEW [--json]',
    summary: 'what replacing one file by the other changes',
    about: `Entity by entity, defaults filled in. References are shown; literals in fields that take
references are not.`,
    takes: { OLD: 'the file that serves now', NEW: 'the one to come', '--json': JSON_RESULT },
    exits: { 0: 'both serve the same', 1: 'they do not', 2: 'wrong usage, or a file is not valid' },
    examples: ['git show HEAD:kong.yml > /tmp/old.yml && postern diff /tmp/old.yml kong.yml']
  },
  'vault get': {
    call: 'vault get REFERENCE [--reveal] [--json]',
    summary: 'read one reference; --reveal prints the value alone',
    about: `Shows vault, version and length of the value and, under POSTERN_FINGERPRINT_KEY alone, its
fingerprint.`,
    takes: {
      REFERENCE: 'such as {vault://fs/db/password}, or fs/db/password without the braces',
      '--reveal': 'print the value, and nothing else (default: never shown)',
      '--json': JSON_RESULT,
      '-c, --config FILE':
        'where the vaults stand that are no default ones (default: POSTERN_CONFIG)'
    },
    exits: { 0: 'there is a value', 1: 'there is none, and why', ...WRONG },
    examples: [
      "postern vault get '{vault://env/db-password}'",
      'POSTERN_VAULT_FS_PREFIX=/run/secrets postern vault get fs/db/password --reveal'
    ]
  },
  'vault list': {
    call: 'vault list [--json]',
    summary: 'every reference, where it stands and its state',
    about: `Those of the file and of the environment, as check --resolve shows them.
${FINGERPRINT}`,
    takes: { '--json': JSON_RESULT, ...CONFIG },
    exits: {
      0: 'every reference has a value that fits',
      1: 'one has not, or the configuration is not valid',
      ...WRONG
    },
    examples: ['postern vault list', 'postern vault list -c kong.yml --json']
  },
  'vault refresh': {
    call: 'vault refresh [PREFIX]',
    summary: 'make the running gateway read its references again',
    about: ASKS,
    takes: { PREFIX: 'only those of the vault of this name (default: all)' },
    exits: {
      0: 'they were asked for; it tells how many changed, and how many have no new value',
      1: 'no gateway answers, or no reference goes to that vault',
      ...WRONG
    },
    examples: ['postern vault refresh', 'postern vault refresh hcv']
  },
  schema: {
    call: 'schema [plugin|vault NAME]',
    summary: 'JSON Schema of a plugin or vault; names without NAME',
    about: 'The schema marks fields that take references with "referenceable": true.',
    takes: {
      NAME: 'a plugin, or with the word vault before it a type of vault (default: list the names)'
    },
    exits: { 0: 'shown', 1: 'there is none of that name', ...WRONG },
    examples: ['postern schema', 'postern schema http-log', 'postern schema vault hcv']
  },
  reload: {
    call: 'reload',
    summary: 'make the running gateway load its file again',
    about: ASKS,
    exits: {
      0: 'the file is in force',
      1: 'it was refused and the old one serves on, or no gateway answers',
      ...WRONG
    },
    examples: ['postern reload', 'POSTERN_STATUS_LISTEN=127.0.0.1:9007 postern reload']
  },
  healthcheck: {
    call: 'healthcheck',
    summary: 'whether the running gateway is ready',
    about: ASKS,
    exits: { 0: 'ready', 1: 'not ready, and why; or no gateway answers', ...WRONG },
    examples: ['postern healthcheck']
  },
  version: {
    call: 'version',
    summary: 'the version',
    exits: { 0: 'shown', ...WRONG },
    examples: ['postern version']
  },
  help: {
    call: 'help [COMMAND]',
    summary: 'this text, or how one command is called',
    exits: { 0: 'shown', ...WRONG },
    examples: ['postern help check', 'postern vault get --help']
  }
}

/** The name of the command these words call; undefined when there is none. */
export function commandOf(words: readonly string[]): string | undefined {
  const [first = '', second] = words
  if (Object.hasOwn(usages, first)) return first
  const both = `${first} ${second}`
  return Object.hasOwn(usages, both) ? both : undefined
}

/** What the words of a call are helped with: a command, all below a word, or the overview. */
export function usageOf(words: readonly string[]): string {
  const name = commandOf(words)
  if (name !== undefined && name !== 'help') return page(name, usages[name]!)
  const below = Object.entries(usages).filter(([each]) => each.startsWith(`${words[0]} `))
  return below.length > 0 ? group(words[0]!, below) : overview()
}

/** How the command is called that these words call wrongly, and where to read more. */
export function briefUsageOf(words: readonly string[]): string {
  const name = commandOf(words)
  if (name !== undefined && name !== 'help')
    return `Usage\n  postern ${usages[name]!.call}\n\n${more(name)}\n`
  const below = Object.entries(usages).filter(([each]) => each.startsWith(`${words[0]} `))
  return below.length > 0
    ? `Usage\n${calls(below)}\n\n${more(words[0]!)}\n`
    : `Usage\n${calls(Object.entries(usages))}\n\n${more('COMMAND')}\n`
}

const more = (name: string): string => `\`postern ${name} --help\` shows more.`

function page(name: string, { call, summary, about, takes, exits, examples }: Usage): string {
  const parts = [
    `postern ${name}: ${summary}`,
    `Usage\n  postern ${call}`,
    ...(about === undefined ? [] : [about]),
    `Options\n${columns({ ...takes, ...HELP })}`,
    `Exit codes\n${columns(exits)}`,
    `Examples\n${examples.map(example => `  ${example}`).join('\n')}`,
    'Settings are environment variables: docs/operations.md.'
  ]
  return `${parts.join('\n\n')}\n`
}

function group(word: string, below: readonly (readonly [string, Usage])[]): string {
  return `postern ${word}: one of these

Usage
${calls(below)}

\`postern ${below[0]![0]} --help\` shows options, exit codes and examples of that one.
`
}

function overview(): string {
  return `postern ${version}: an HTTP gateway whose configuration holds no secret

Usage
${calls(Object.entries(usages))}

\`postern COMMAND --help\` shows a command's options, exit codes and examples.

FILE is ${FILE.FILE}.
-c FILE, --config FILE says the same in every command.

Exit codes
  0 done   1 the configuration, a reference or the gateway is not all right   2 wrong usage
  diff: 0 equal   1 different   2 wrong usage, or a file that is not valid

Settings are environment variables, POSTERN_CONFIG and others: docs/operations.md.
`
}

const calls = (entries: readonly (readonly [string, Usage])[]): string =>
  columns(Object.fromEntries(entries.map(([, { call, summary }]) => [`postern ${call}`, summary])))

/** Terms and what they mean, aligned; a long term has its line. */
function columns(rows: Readonly<Record<string, string>>): string {
  const terms = Object.keys(rows)
  const width = Math.max(...terms.map(term => term.length).filter(length => length <= 32))
  return Object.entries(rows)
    .map(([term, meaning]) => {
      const indent = ' '.repeat(width + 4)
      const text = meaning.replaceAll('\n', `\n${indent}`)
      return term.length > width
        ? `  ${term}\n${indent}${text}`
        : `  ${term.padEnd(width)}  ${text}`
    })
    .join('\n')
}
