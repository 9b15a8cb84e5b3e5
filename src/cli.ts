#!/usr/bin/env node
import { coloredBy, Output } from './commands/command.ts'
import { main } from './commands/main.ts'

const { argv, env, stdout, stderr } = process
const output = new Output(stdout, stderr, coloredBy(env))
process.exitCode = await main(argv.slice(2), env, output)
