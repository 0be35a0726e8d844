// Notes each request that it sees.
const fs = require('fs')
const http = require('http')

const log = fs.openSync(process.env.REQUESTS, 'a')

http
  .createServer((request, response) => {
    fs.writeSync(log, `${request.socket.remotePort} ${request.method} ${request.url}\n`)
    request.resume()
    request.on('end', () => {
      response.setHeader('Content-Length', 0)
      response.end()
    })
  })
  .listen(Number(process.argv[2]), '0.0.0.0')
